"""LoraConfig: checked as a whole, unchangeable, equal by all fields, and the same again after JSON."""

import copy
import math
import pickle
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratk import LoraConfig
from loratk.errors import ConfigError

# What the Java module's configuration can do


def test_rank_and_alpha_alone():
    got = LoraConfig(8, 16)
    assert (got.rank, got.alpha, got.scaling, got.dropout, got.bias) == (8, 16.0, 2.0, 0.0, "none")


def test_all_fields():
    want = {"rank": 16, "alpha": 32.0, "dropout": 0.1, "bias": "all", "targets": ("linear", "attention")}
    got = LoraConfig(**want)
    assert {name: getattr(got, name) for name in want} == want
    assert got.scaling == 2.0


@pytest.mark.parametrize(
    ("config", "rank", "alpha"),
    [
        (LoraConfig.default(16), 16, 16.0),
        (LoraConfig.low_rank(), 4, 8.0),
        (LoraConfig.medium_rank(), 16, 32.0),
        (LoraConfig.high_rank(), 64, 128.0),
    ],
)
def test_presets(config, rank, alpha):
    assert (config.rank, config.alpha) == (rank, alpha)


def test_presets_take_other_fields():
    assert LoraConfig.low_rank(dropout=0.5, seed=3) == LoraConfig(4, 8, dropout=0.5, seed=3)


def test_reduction():
    assert LoraConfig.default(8).reduction(100, 50) == 1 - 8 * 150 / 5000
    assert LoraConfig.default(8).reduction(10, 10) == pytest.approx(-0.6)
    assert LoraConfig.default(8).reduction(65536, 65536) == 1 - 8 * 2 / 65536  # no integer is too large


def test_rank_against_a_weight():
    config = LoraConfig.default(8)
    config.validate(20, 15)
    config.validate(8, 10)  # the whole rank is allowed, more is not
    for shape in ((7, 10), (10, 7)):
        with pytest.raises(ConfigError, match=r"Rank 8 is above min\(d, k\) = 7 .*choose at most 7"):
            config.validate(*shape)


def test_replace_keeps_the_rest():
    config = LoraConfig(8, 16, dropout=0.1, targets=["fc"])
    assert config.replace(rank=16) == LoraConfig(16, 16, dropout=0.1, targets=["fc"])
    assert config.replace(alpha=32).rank == 8
    assert config == LoraConfig(8, 16, dropout=0.1, targets=["fc"])


def test_replace_checks_again():
    with pytest.raises(ConfigError, match="rank must be"):
        LoraConfig().replace(rank=0)
    with pytest.raises(ConfigError, match=r"no field 'r'\. Its fields: .*'rank'"):
        LoraConfig().replace(r=4)


def test_repr_shows_every_field():
    got = repr(LoraConfig(8, 16, dropout=0.1, targets=["q"]))
    assert all(part in got for part in ("rank=8", "alpha=16.0", "dropout=0.1", "bias='none'", "targets=('q',)", "method='lora'"))


# What is refused


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        *(("rank", value, "rank must be an integer of at least 1") for value in (0, -1, 2.0, True, None, "8", 2**31)),
        *(("alpha", value, "alpha must be a finite number") for value in (-1, math.nan, math.inf, 1e39, 10**400, True, "8", None)),
        *(("dropout", value, r"dropout must be a number in \[0, 1\)") for value in (-0.1, 1.0, 1, math.nan, math.inf, 10**400, "0", None)),
        *(("bias", value, "bias must be one of 'all', 'lora_only', 'none'") for value in ("some", True, None)),
        *(("seed", value, "seed must be an integer in") for value in (-1, 2**64, 0.5, True, None)),
        *(("targets", value, "targets must be a pattern or a list") for value in (None, 3, {"q"}, {"q": 1})),
        *(("exclude", value, "exclude must be a pattern or a list") for value in (None, 3)),
        ("targets", [], "targets must name at least one pattern"),
        ("targets", ["fc", 3], "targets must hold patterns"),
        ("targets", [""], "targets must hold patterns"),
        ("targets", ["re:("], "no regular expression"),
        ("exclude", ["re:["], "no regular expression"),
        ("rank_pattern", {"fc": 0}, r"rank_pattern\['fc'\] must be an integer"),
        ("rank_pattern", {"": 4}, "rank_pattern must hold patterns"),
        ("rank_pattern", [("fc", 4)], "rank_pattern must map"),
        ("alpha_pattern", {"fc": math.nan}, r"alpha_pattern\['fc'\] must be a finite number"),
        ("alpha_pattern", {"re:*": 1.0}, "no regular expression"),
        ("rslora", 1, "rslora must be True or False"),
        ("method", "lore", "method must be one of 'adalora', 'dora'.*found 'lore'; a plugin"),
        ("method", None, "method must be one of"),
        ("options", {"inti": "gaussian"}, "the method 'lora' has no option 'inti'; its options: 'corrected', 'freeze_A'"),
        ("init", "random", "init must be one of "),
        ("options", 4, "options must map"),
    ],
)
def test_refused(field, value, said):
    with pytest.raises(ConfigError, match=said) as caught:
        LoraConfig(**{field: value})
    assert isinstance(caught.value, ValueError)


def test_all_faults_at_once():
    with pytest.raises(ConfigError) as caught:
        LoraConfig(rank=0, alpha=-1, dropout=2, bias="x", targets=[], seed=-1, method="x", rank_pattern={"a": -1}, rslora="yes")
    got = str(caught.value)
    assert all(
        f"\n  - {name}" in got
        for name in ("rank ", "alpha ", "dropout ", "bias ", "targets ", "seed ", "method ", "rank_pattern", "rslora ")
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object, found list"),
        ('{"r": 8}', "no field 'r'"),
        ('{"alpha": NaN}', "alpha must be"),
        ('{"rank": 8.0}', "rank must be"),
        ('{"targets": {"q": 1}}', "targets must be"),
    ],
)
def test_json_that_is_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        LoraConfig.from_json(text)


# It cannot be changed


def test_immutable():
    given_targets, patterns = ["fc"], {"fc": 4}
    config = LoraConfig(targets=given_targets, rank_pattern=patterns)
    given_targets.append("out")
    patterns["fc"] = 5
    assert (config.targets, config.rank_pattern) == (("fc",), {"fc": 4})
    with pytest.raises(FrozenInstanceError):
        config.rank = 3
    for change in (
        lambda d: d.update(fc=1),
        lambda d: d.pop("fc"),
        lambda d: d.__setitem__("a", 1),
        lambda d: d.clear(),
        lambda d: d.setdefault("b", 1),
    ):
        with pytest.raises(TypeError, match=r"make another with replace\(\)"):
            change(config.rank_pattern)


def test_copies_are_equal():
    config = LoraConfig(rank_pattern={"a": 1}, init="gaussian")
    for got in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert got == config
        assert hash(got) == hash(config)


# Equality and JSON, for any config

patterns = st.sampled_from(["all-linear", "fc", "encoder.*.q", "re:block\\.[0-9]+", "out", "schicht.größe"])
alphas = st.floats(0, 3.4e38, allow_nan=False) | st.integers(0, 1000)
configs = st.fixed_dictionaries(
    {},
    optional={
        "rank": st.integers(1, 2**31 - 1),
        "alpha": alphas,
        "dropout": st.floats(0, 1, exclude_max=True),
        "bias": st.sampled_from(["none", "all", "lora_only"]),
        "targets": st.lists(patterns, min_size=1, max_size=3) | patterns,
        "exclude": st.lists(patterns, max_size=3),
        "rank_pattern": st.dictionaries(patterns, st.integers(1, 100), max_size=3),
        "alpha_pattern": st.dictionaries(patterns, alphas, max_size=3),
        "method": st.sampled_from(["lora", "dora"]),
        "init": st.sampled_from([None, "gaussian", {"name": "kaiming"}]),
        "rslora": st.booleans(),
        "seed": st.integers(0, 2**64 - 1),
    },
)


@given(configs)
def test_json_gives_it_back(values):
    want = LoraConfig(**values)
    got = LoraConfig.from_json(want.to_json())
    assert got == want
    assert hash(got) == hash(want)
    assert list(got.rank_pattern) == list(want.rank_pattern)  # the first pattern that matches counts
    assert LoraConfig.from_dict(want.to_dict()) == want
    assert want.replace() == want


@given(configs, configs)
def test_equality_is_that_of_all_fields(one, other):
    a, b = LoraConfig(**one), LoraConfig(**other)
    assert (a == b) == all(getattr(a, field.name) == getattr(b, field.name) for field in fields(a))
    assert a != b or hash(a) == hash(b)


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 9}, {"alpha": 9}, {"dropout": 0.5}, {"bias": "all"}, {"targets": ["fc"]}, {"exclude": ["fc"]}, {"rank_pattern": {"fc": 1}},
        {"alpha_pattern": {"fc": 1}}, {"method": "dora"}, {"init": "gaussian"},
        {"rank_dropout": 0.5}, {"module_dropout": 0.5}, {"max_norm": 1.0},
        {"layer_pattern": {"fc": {"rank": 2}}}, {"share": {"fc": "up"}}, {"rslora": True}, {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_no_field_is_left_out_of_equality(change):
    assert LoraConfig(**change) != LoraConfig()


def test_the_fields_are_all_tested_for_equality():
    assert {field.name for field in fields(LoraConfig)} == {
        "rank", "alpha", "dropout", "bias", "targets", "exclude", "rank_pattern", "alpha_pattern", "layer_pattern", "share", "method",
        "options", "init", "rslora", "rank_dropout", "module_dropout", "max_norm", "seed",
    }  # fmt: skip


# Ranks and scalings of single layers


def test_scaling():
    assert LoraConfig(16, 32).scaling == 2.0
    assert LoraConfig(16, 32, rslora=True).scaling == 8.0
    assert LoraConfig(16, 0).scaling == 0.0


def test_patterns_choose_rank_and_alpha():
    config = LoraConfig(8, 16, rank_pattern={"q": 2, "*.q": 3}, alpha_pattern={"re:.*[.]k": 5})
    assert [config.rank_of(name) for name in ("attn.q", "q", "attn.k", "q.attn")] == [2, 2, 8, 8]
    assert [config.alpha_of(name) for name in ("attn.q", "attn.k")] == [16.0, 5.0]


def test_a_block_has_its_own_name_and_its_modules():
    config = LoraConfig(8, rank_pattern={"attn.qkv.k": 2, "attn.qkv": 3, "all-linear": 4})
    assert config.rank_of("attn.qkv.k", "attn.qkv") == 2
    assert config.rank_of("attn.qkv.q", "attn.qkv") == 3
    assert config.rank_of("fc", linear=True) == 4
    assert config.rank_of("fc") == 8


def test_the_order_of_patterns_counts_in_a_comparison_that_of_options_does_not():
    left, right = ({"a": 2, "re:.*": 3}, {"re:.*": 3, "a": 2})
    assert LoraConfig(rank_pattern=left) != LoraConfig(rank_pattern=right)
    assert LoraConfig(rank_pattern=left) == LoraConfig.from_json(LoraConfig(rank_pattern=left).to_json())
    assert hash(LoraConfig(rank_pattern=left)) == hash(LoraConfig(rank_pattern=dict(left)))


@pytest.mark.parametrize(("d", "k"), [(0, 3), (3, 0), (-1, 3)])
def test_a_weight_without_numbers_is_refused(d, k):
    for ask in (LoraConfig().reduction, LoraConfig().validate):
        with pytest.raises(ConfigError, match=rf"found \({d}, {k}\)"):
            ask(d, k)


def test_numbers_of_numpy_are_numbers():
    got = LoraConfig(rank=np.int64(3), alpha=np.float32(6), dropout=np.float64(0.25), seed=np.uint8(7))
    assert got == LoraConfig(rank=3, alpha=6, dropout=0.25, seed=7)
    assert LoraConfig.from_json(got.to_json()) == got
