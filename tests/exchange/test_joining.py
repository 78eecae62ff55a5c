"""An adapter whose init moved the base, or whose scaling was learned, is plain LoRA to everyone else, and its own in loratk's files."""

import numpy as np
import pytest

import loratk
from loratk import LoraConfig, LoraModel
from loratk.algebra.sums import average
from loratk.exchange.cautions import cautions
from loratk.exchange.factors import dense_update
from loratk.exchange.hub import state_faults
from loratk.exchange.joining import joined, joined_state
from loratk.exchange.portable import portable
from loratk.lora.files import adapter_state
from loratk.nn import MLP
from loratk.testing.layer_type import randomize

X = np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32)
CASES = {
    "pissa": {"init": "pissa"},
    "olora": {"init": {"name": "olora"}},
    "stabilised": {"init": "pissa", "rslora": True},
    "gain": {"method": "lora_gain"},
    "both": {"method": "lora_gain", "init": "pissa"},
}


def base():
    return MLP([12, 10, 8], rng=0)


def trained(case):
    """A model whose adapter is somewhere else than at the start, but not far."""
    model = LoraModel.adapt(base(), LoraConfig(rank=2, alpha=6, **CASES[case]))
    rng = np.random.default_rng(1)
    state = model.state()
    model.load_state(
        {
            name: array if "initial" in name else (array + 0.1 * rng.standard_normal(array.shape)).astype(array.dtype)
            for name, array in state.items()
        }
    )
    return model


def deltas(model):
    return {name: layer.adapter("default").block("").delta(layer.base.weight.numpy()) for name, layer in model.layers.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_joined_factors_are_the_update(case):
    model = trained(case)
    state = adapter_state(model, "default")
    for module, want in deltas(model).items():
        record, held = joined(state.modules[module], state.parameters()[module])
        assert record["method"] == "lora"
        assert set(held) == {"lora_A", "lora_B"}
        assert record["rank"] == held["lora_A"].shape[1] == (2 if case == "gain" else 4)
        assert record["scaling"] == pytest.approx(record["alpha"] / record["rank"] ** (0.5 if case == "stabilised" else 1))
        assert np.allclose(dense_update(record, held), want, atol=1e-6)
        assert np.allclose(dense_update(state.modules[module], state.parameters()[module]), want, atol=1e-6)
    whole = joined_state(state)
    assert not list(state_faults([whole]))
    again = LoraModel(base())
    again.add_adapter("default", LoraConfig.from_dict(whole.config), check_rank=False)
    again.load_state(whole.tensors)  # the config fits
    assert all(np.allclose(got, deltas(model)[name], atol=1e-6) for name, got in deltas(again).items())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("suffix", [".h5", ".npz", ".safetensors"])
def test_loratks_own_files_keep_the_parts_and_load_without_data(case, suffix, tmp_path):
    model = trained(case)
    model.save(tmp_path / f"a{suffix}", format={".safetensors": "safetensors"}.get(suffix))
    (state,) = loratk.load_adapter(tmp_path / f"a{suffix}").states
    assert ("0.initial_A" in state.tensors) == (case not in ("gain",))
    assert ("0.gain" in state.tensors) == (case in ("gain", "both"))
    again = LoraModel.from_file(base(), tmp_path / f"a{suffix}")
    assert np.array_equal(again(X).numpy(), model(X).numpy())
    assert again.adapters == model.adapters


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("format", ["peft", "kohya", "mlx"])
def test_other_formats_have_plain_lora(case, format, tmp_path):
    model = trained(case)
    path = tmp_path / ("a.safetensors" if format == "kohya" else "a")
    notes = loratk.save_adapter(path, adapter_state(model, "default"), format=format, bake=True)
    if case != "gain":
        assert any("what its init took off the base is in the factors, rank 2 made 4: exact" in note for note in notes)
    if "gain" in CASES[case].get("method", ""):
        assert any("its learned gain is in" in note for note in notes)
    (state,) = loratk.load_adapter(path, format=format).states
    got = {module: dense_update(state.modules[module], held) for module, held in state.parameters().items() if held}
    assert len(got) == 2
    for want, delta in zip(deltas(model).values(), got.values(), strict=True):
        assert np.allclose(delta, want, atol=1e-5)


def test_a_peft_folder_of_it_loads_as_a_plain_adapter(tmp_path):
    model = trained("pissa")
    model.save(tmp_path / "a", format="peft")
    again = LoraModel.from_file(base(), tmp_path / "a")
    assert again.adapters["default"].init is None
    assert np.allclose(again(X).numpy(), model(X).numpy(), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_comparing_portable_and_arithmetic_mean_the_update(case):
    model = trained(case)
    state = adapter_state(model, "default")
    plain = joined_state(state)
    assert loratk.diff(state, plain).same
    assert loratk.diff(state, portable(state)).same
    assert loratk.diff(state, average([state, state]).state, tolerance=1e-5).same
    smaller = loratk.resize(state, rank=4).results[0].state
    assert loratk.diff(state, smaller, tolerance=1e-5).same
    assert smaller.config.get("init") is None
    LoraModel(base()).add_adapter("x", LoraConfig.from_dict(smaller.config))


@pytest.mark.parametrize("case", CASES)
def test_merging_into_files_adds_the_update(case, tmp_path):
    model = trained(case)
    np.savez(tmp_path / "base.npz", **model.base_state())
    model.save(tmp_path / "a.h5")
    loratk.merge(tmp_path / "base.npz", [tmp_path / "a.h5"], tmp_path / "merged.npz")
    with np.load(tmp_path / "merged.npz") as merged:
        for name, want in model.merged_state().items():
            assert np.allclose(merged[name], want, atol=1e-6)


def test_an_adapter_at_its_start_is_told_to_add_nothing():
    model = LoraModel.adapt(base(), LoraConfig(rank=2, init="pissa"))
    assert any("every update is zero" in line for line in cautions(adapter_state(model, "default")))
    randomize(model.layers["0"].adapters, 1)
    assert not any("every update is zero" in line for line in cautions(adapter_state(model, "default")))


def test_first_factors_that_do_not_fit_are_faults():
    state = adapter_state(trained("pissa"), "default")
    del state.tensors["0.initial_B"]
    state.tensors["2.initial_A"] = np.zeros((3, 2))
    found = list(state_faults([state]))
    assert any("module '0': tensor 'initial_B' is missing" in fault for fault in found)
    assert any("module '2': initial_A must have shape (10, 2), found (3, 2)" in fault for fault in found)
