"""Which modules a config means, what a dry run says about it, and what is said about patterns that mean nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratk import LoraConfig, LoraModel
from loratk.errors import ConfigError
from loratk.lora.targets import matches
from loratk.nn import Conv2d, Embedding, LayerNorm, Linear, Module, MultiHeadAttention, Sequential


class Net(Module):
    def __init__(self):
        self.embed = Embedding(9, 8, rng=0)
        self.attn = MultiHeadAttention(8, 2, rng=1)
        self.norm = LayerNorm(8)
        self.fc = Linear(8, 6, rng=2)
        self.bigfc = Linear(6, 6, rng=3)
        self.blocks = Sequential(Linear(6, 6, rng=4), Sequential(Linear(6, 6, rng=5)))
        self.conv = Conv2d(2, 3, 3, rng=6)


def chosen(**config):
    model = LoraModel.adapt(Net(), LoraConfig(rank=2, **config))
    return {
        ".".join(part for part in (name, block) if part)
        for name, layer in model.layers.items()
        for block in layer.adapter("default").blocks()
    }


LINEAR = {"attn.qkv.q", "attn.qkv.k", "attn.qkv.v", "attn.out", "fc", "bigfc", "blocks.0", "blocks.1.0"}


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ({}, LINEAR),
        ({"targets": "all-linear"}, LINEAR),
        ({"targets": ["fc"]}, {"fc"}),
        ({"targets": ["0"]}, {"blocks.0", "blocks.1.0"}),
        ({"targets": ["1.0", "embed"]}, {"blocks.1.0", "embed"}),
        ({"targets": ["*fc"]}, {"fc", "bigfc"}),
        ({"targets": ["blocks.*"]}, {"blocks.0", "blocks.1.0"}),
        ({"targets": ["blocks.?"]}, {"blocks.0"}),
        ({"targets": ["[fb]*fc"]}, {"bigfc"}),
        ({"targets": ["re:(big)?fc"]}, {"fc", "bigfc"}),
        ({"targets": ["re:.*\\d"]}, {"blocks.0", "blocks.1.0"}),
        ({"targets": ["re:fc"]}, {"fc"}),
        ({"targets": ["qkv"]}, {"attn.qkv.q", "attn.qkv.k", "attn.qkv.v"}),
        ({"targets": ["attn.qkv.q", "qkv.v"]}, {"attn.qkv.q", "attn.qkv.v"}),
        ({"targets": ["q", "v"]}, {"attn.qkv.q", "attn.qkv.v"}),
        ({"targets": ["conv", "embed"]}, {"conv", "embed"}),
        ({"exclude": ["blocks.*", "attn.qkv"]}, {"attn.out", "fc", "bigfc"}),
        ({"targets": ["qkv"], "exclude": ["k"]}, {"attn.qkv.q", "attn.qkv.v"}),
        ({"targets": "*", "exclude": ["all-linear"]}, {"embed", "conv"}),
    ],
    ids=str,
)
def test_chosen(config, want):
    assert chosen(**config) == want


def test_case_counts():
    assert not matches("FC", "fc")
    assert not matches("F*", "fc")


def test_a_regular_expression_is_for_the_whole_name():
    assert matches("re:blocks\\.1", "blocks.1")
    assert not matches("re:blocks\\.1", "blocks.1.0")
    assert not matches("re:blocks\\.1", "my.blocks.1")


def test_every_pattern_without_effect_is_listed():
    with pytest.raises(ConfigError) as caught:
        chosen(targets=["fc", "query", "norm"], exclude=["nothing.*"], rank_pattern={"blocks.0": 3}, alpha_pattern={"re:x+": 1.0})
    got = str(caught.value)
    assert "targets: 'query' matches nothing" in got
    assert "targets: 'norm' matches nothing that can have an adapter ('norm' is a LayerNorm, for which no layer type is registered)" in got
    assert "exclude: 'nothing.*' matches nothing" in got
    assert "rank_pattern: 'blocks.0' matches nothing" in got  # it is there, but has no adapter
    assert "alpha_pattern: 're:x+' matches nothing" in got
    assert "attn.qkv (qkv), attn.out (linear), fc (linear)" in got
    assert "'fc' matches" not in got


def test_the_list_of_candidates_ends():
    with pytest.raises(ConfigError, match="and 5 more"):
        LoraModel.adapt(Sequential(*(Linear(2, 2, rng=0) for _ in range(25))), LoraConfig(1, targets="x"))


def test_excluding_everything_is_said():
    with pytest.raises(ConfigError, match="exclude takes away all that targets"):
        chosen(targets=["fc"], exclude=["re:f."])


def test_a_failed_choice_leaves_the_module_as_it_was():
    net = Net()
    before = repr(net)
    with pytest.raises(ConfigError):
        LoraModel.adapt(net, LoraConfig(rank=2, targets=["fc", "query"]))
    assert repr(net) == before


def test_every_layer_with_too_high_a_rank_is_listed():
    net = Net()
    before = repr(net)
    with pytest.raises(ConfigError) as caught:
        LoraModel.adapt(net, LoraConfig(rank=7, rank_pattern={"attn.qkv.q": 9, "attn.qkv": 8}))
    got = str(caught.value)
    assert all(f"of '{name}'" in got for name in ("fc", "bigfc", "blocks.0", "blocks.1.0", "attn.qkv.q"))
    assert not any(f"of '{name}'" in got for name in ("attn.out", "attn.qkv.k", "attn.qkv.v"))
    assert repr(net) == before


def test_ranks_of_layers_and_blocks():
    config = LoraConfig(rank=2, alpha=4, rank_pattern={"attn.qkv.k": 1, "attn.qkv": 3}, alpha_pattern={"fc": 8, "all-linear": 6})
    model = LoraModel.adapt(Net(), config)
    blocks = model.layers["attn.qkv"].adapter("default").blocks()
    assert {name: adapter.rank for name, adapter in blocks.items()} == {"q": 3, "k": 1, "v": 3}
    assert blocks["q"].scaling == 2.0
    assert model.layers["fc"].adapter("default").blocks()[""].scaling == 4.0
    assert model.layers["bigfc"].adapter("default").blocks()[""].scaling == 3.0


def test_a_dry_run_says_who_decided():
    net = Net()
    before = repr(net)
    got = {
        c.name: (c.layer_type, c.shape, c.chosen, c.by) for c in LoraModel.explain(net, LoraConfig(targets=["fc", "qkv"], exclude=["q"]))
    }
    assert got["fc"] == ("linear", (8, 6), True, "targets 'fc'")
    assert got["attn.qkv.q"] == ("qkv", (8, 8), False, "exclude 'q'")
    assert got["attn.qkv.k"] == ("qkv", (8, 8), True, "targets 'qkv'")
    assert got["conv"] == ("conv2d", (18, 3), False, "no pattern")
    assert repr(net) == before
    LoraModel.explain(net, LoraConfig(rank=100, targets="nowhere"))  # nothing is refused


names = st.lists(st.sampled_from(["a", "b", "fc", "q", "0", "1"]), min_size=1, max_size=4).map(".".join)


@given(names, names)
def test_a_plain_pattern_is_a_whole_name_or_its_end(pattern, name):
    parts, end = name.split("."), pattern.split(".")
    assert matches(pattern, name) == (parts[-len(end) :] == end)
