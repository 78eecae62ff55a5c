"""Settings by pattern, and the kinds of dropout: each does what it says, for the layers it names."""

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel
from loratk.errors import ConfigError
from loratk.nn import MLP


def net():
    return MLP([6, 5, 4, 3], rng=0)


def test_the_first_pattern_that_matches_counts_as_a_whole():
    config = LoraConfig(rank=2, alpha=4, dropout=0.1, layer_pattern={"0": {"rank": 3, "method": "dora"}, "*": {"alpha": 1, "rank": 1}})
    first, other = config.layer("0"), config.layer("2")
    assert (first.rank, first.alpha, first.method, first.dropout) == (3, 4.0, "dora", 0.1)
    assert (other.rank, other.alpha, other.method) == (1, 1.0, "lora")
    assert (first.scaling, other.scaling) == (4 / 3, 1.0)


def test_rank_and_alpha_patterns_go_before_layer_pattern():
    config = LoraConfig(rank_pattern={"0": 5}, alpha_pattern={"0": 10}, layer_pattern={"0": {"rank": 3, "alpha": 6, "rslora": True}})
    assert (config.layer("0").rank, config.layer("0").alpha, config.layer("0").rslora) == (5, 10.0, True)


def test_a_model_has_what_the_patterns_say_and_a_file_brings_it_back(tmp_path):
    config = LoraConfig(rank=2, layer_pattern={"2": {"method": "dora", "rank": 1}, "4": {"rank": 3, "rslora": True, "alpha": 2}})
    model = LoraModel.adapt(net(), config)
    parts = {name: layer.adapter("default").block("") for name, layer in model.layers.items()}
    assert {name: (part.method.name, part.rank) for name, part in parts.items()} == {"0": ("lora", 2), "2": ("dora", 1), "4": ("lora", 3)}
    assert parts["4"].scaling == 2 / np.sqrt(3)
    for parameter in model.trainable():
        parameter.assign(np.random.default_rng(1).standard_normal(parameter.shape).astype(np.float32))
    model.save(tmp_path / "a.h5")
    again = LoraModel.from_file(net(), tmp_path / "a.h5")
    x = np.random.default_rng(2).standard_normal((4, 6)).astype(np.float32)
    assert np.array_equal(again(x).numpy(), model.eval()(x).numpy())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rang": 3}, r"layer_pattern\['0'\] has no setting 'rang'"),
        ({}, "must map some of"),
        (3, "must map some of"),
        ({"rank": 0}, r"layer_pattern\['0'\]: rank must be an integer"),
        ({"method": "lore"}, r"layer_pattern\['0'\]: method must be one of"),
        ({"options": {"x": 1}}, "has no option 'x'"),
        ({"init": "x"}, "init must be one of"),
        ({"rank_dropout": 1.0}, r"number in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        LoraConfig(layer_pattern={"0": values})


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match="layer_pattern: 'fc' matches nothing"):
        LoraModel.adapt(net(), LoraConfig(rank=1, layer_pattern={"fc": {"rank": 2}}))


def adapted(**settings):
    """A model of one layer with random factors of rank 3, and its input."""
    model = LoraModel.adapt(MLP([6, 5], rng=0, bias=False), LoraConfig(rank=3, alpha=3, **settings))
    rng = np.random.default_rng(1)
    for parameter in model.trainable():
        parameter.assign(rng.standard_normal(parameter.shape).astype(np.float32))
    x = rng.standard_normal((4, 6)).astype(np.float32)
    part = model.layers["0"].adapter("default").block("")
    with model.disabled():
        base = model(x).numpy()
    return model, x, base, x @ part.lora_A.numpy(), part.lora_B.numpy()


def test_rank_dropout_keeps_or_drops_each_rank_of_each_row():
    model, x, base, xa, b = adapted(rank_dropout=0.5)
    update = model(x).numpy() - base
    kept = np.linalg.lstsq(b.T, update.T, rcond=None)[0].T / xa  # (4, 3): what each rank was multiplied by
    assert set(np.round(np.unique(kept), 4)) == {0.0, 2.0}
    again = adapted(rank_dropout=0.5)[0]
    assert np.array_equal(again(x).numpy(), update + base) or np.allclose(again(x).numpy() - base, update, atol=1e-6)
    model.eval()
    assert np.allclose(model(x).numpy() - base, xa @ b, atol=1e-5)


def test_module_dropout_leaves_the_whole_adapter_out_of_some_passes():
    model, x, base, xa, b = adapted(module_dropout=0.5)
    passes = [model(x).numpy() - base for _ in range(40)]
    out = [np.abs(update).max() == 0 for update in passes]
    assert 8 < sum(out) < 32
    assert all(np.allclose(update, xa @ b, atol=1e-5) for update, is_out in zip(passes, out, strict=True) if not is_out)
    model.eval()
    assert np.allclose(model(x).numpy() - base, xa @ b, atol=1e-5)


def test_another_method_starts_from_its_own_options_and_init():
    config = LoraConfig(rank=2, options={"freeze_A": True}, init="pissa", layer_pattern={"0": {"method": "ia3"}, "2": {"rank": 1}})
    other, same = config.layer("0"), config.layer("2")
    assert (other.method, dict(other.options), other.init) == ("ia3", {}, None)
    assert (same.method, dict(same.options), same.init) == ("lora", {"freeze_A": True}, "pissa")
