"""Resizing files of every kind."""

import json

import numpy as np
import pytest
from algebra_states import module, state, update

import loratk
from loratk.algebra import Rule
from loratk.errors import ConfigError, FormatError, StoreError
from loratk.exchange import load_adapter, save_adapter
from loratk.exchange.transform import cast

MODULES = {
    "block.0.q": module(1, d=20, k=16, rank=8, alpha=16, dtype=np.float32),
    "block.0.v": module(2, d=20, k=16, rank=8, alpha=16, rslora=True, dtype=np.float32),
}


@pytest.fixture
def adapter():
    return state(MODULES, "default")


@pytest.mark.parametrize("name", ["folder", "out.h5", "out.npz", "out.safetensors", "mlx"])
def test_every_format_goes_in_and_out(tmp_path, adapter, name):
    kinds = {"folder": "peft", "mlx": "mlx", "out.safetensors": "safetensors"}
    save_adapter(tmp_path / name, adapter, format=kinds.get(name))
    target = tmp_path / f"small-{name}"
    done = loratk.resize(tmp_path / name, target, energy=0.7)
    (back,) = load_adapter(target).states
    (read,) = load_adapter(tmp_path / name).states
    assert type(done.format) is str
    for path in MODULES:
        whole, got = update(read, path), update(back, path)
        error = np.linalg.norm(whole - got) / np.linalg.norm(whole)
        assert 0.1 < error <= 0.3**0.5 + 1e-6
        assert error == pytest.approx(done.results[0].certificate.modules[path].error, abs=1e-6)
        values = np.linalg.svd(whole, compute_uv=False) ** 2
        assert back.modules[path]["rank"] == 1 + int(np.argmax(np.cumsum(values) / values.sum() >= 0.7))


def test_the_format_is_the_sources_where_the_suffix_leaves_a_choice(tmp_path, adapter):
    save_adapter(tmp_path / "a", adapter, format="peft")
    assert loratk.resize(tmp_path / "a", tmp_path / "b", rank=2).format == "peft"
    assert loratk.resize(tmp_path / "a", tmp_path / "b.h5", rank=2).format == "hdf5"
    assert loratk.resize(tmp_path / "a", tmp_path / "c", rank=2, to="mlx").format == "mlx"
    with pytest.raises(ConfigError, match="cannot choose how to write"):
        loratk.resize(adapter, tmp_path / "d", rank=2)


def test_dtypes_stay(tmp_path, adapter):
    (half,) = cast([adapter], "bfloat16")
    save_adapter(tmp_path / "a", half, format="peft")
    loratk.resize(tmp_path / "a", tmp_path / "b", rank=2)
    (back,) = load_adapter(tmp_path / "b").states
    assert back.modules["block.0.q"]["dtypes"] == {"lora_A": "bfloat16", "lora_B": "bfloat16"}


def test_states_are_resized_without_a_file_and_reported(adapter):
    done = loratk.resize([adapter], rank=2, patterns={"v": Rule(energy=1.0)})
    assert done.before == [{"block.0.q": 8, "block.0.v": 8}]
    told = json.loads(json.dumps(done.to_json()))
    (one,) = told["adapters"]
    assert one["modules"]["block.0.q"]["rank_before"] == 8
    assert one["modules"]["block.0.q"]["rank"] == 2
    assert one["modules"]["block.0.v"]["rank"] == 8
    assert one["error"] == pytest.approx(done.results[0].certificate.error)
    assert told["format"] is None


def test_nothing_is_written_over_what_is_there_or_in_a_dry_run(tmp_path, adapter):
    target = tmp_path / "a.h5"
    save_adapter(target, adapter)
    before = target.read_bytes()
    with pytest.raises(StoreError, match="is there already"):
        loratk.resize(target, target, rank=2)
    loratk.resize(target, tmp_path / "b.h5", rank=2, dry_run=True)
    assert not (tmp_path / "b.h5").exists()
    assert target.read_bytes() == before
    loratk.resize(target, target, rank=2, force=True)
    assert load_adapter(target).states[0].modules["block.0.q"]["rank"] == 2
    with pytest.raises(ConfigError, match="names the architecture of its base"):
        loratk.resize(target, tmp_path / "x.gguf", rank=2, dry_run=True)


def test_requests_without_sense_are_refused(adapter):
    with pytest.raises(ConfigError, match="needs a rule: rank, ratio, energy or error"):
        loratk.resize(adapter)
    with pytest.raises(ConfigError, match="needs the rank to grow to"):
        loratk.resize(adapter, energy=0.5, grow=True)
    with pytest.raises(ConfigError, match="growing goes with a rank alone"):
        loratk.resize(adapter, rank=9, energy=0.5, grow=True)
    with pytest.raises(FormatError, match="there is no adapter"):
        loratk.resize([], rank=1)
    broken = state({"x": module(1)})
    del broken.tensors["x.lora_B"]
    with pytest.raises(FormatError, match="'lora_B' is missing"):
        loratk.resize(broken, rank=1)
