import json

import numpy as np
import pytest

from loratk.exchange import AdapterState, write_adapters
from loratk.io import Hdf5Store
from loratk.plugins import default_registry

HEAD = {"format": "loratk-adapter", "format_version": "1", "adapters/mine/config": "{}"}
RECORD = {"method": "lora", "rank": "1", "alpha": "1.0", "scaling": "1.0"}


def raw(path, arrays, record=RECORD):
    strings = HEAD | {f"adapters/mine/0/{key}": text for key, text in record.items()}
    Hdf5Store().write(path, {f"adapters/mine/0/{key}": array for key, array in arrays.items()}, strings)
    return path


def test_a_sound_file(run, files):
    got = run("verify", files.adapters)
    assert got.exit_code == 0, got.stdout
    assert "ok      format: loratk adapters, hdf5 (its string 'format' is 'loratk-adapter')" in got.stdout
    assert "ok      checksums: every byte is as it was written" in got.stdout
    assert "ok      structure: 2 adapters, 9 tensors" in got.stdout
    assert "numbers are finite" in got.stdout
    assert got.stdout.endswith(f"{files.adapters} is sound.\n")


def test_a_flipped_bit_is_found(run, files, tmp_path):
    whole = bytearray(files.adapters.read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "damaged.h5").write_bytes(whole)
    got = run("verify", tmp_path / "damaged.h5")
    assert got.exit_code == 1
    assert "FAULT" in got.stdout
    assert "do not match their checksum" in got.stdout


def test_every_fault_of_the_structure_is_listed(run, tmp_path):
    path = raw(tmp_path / "a.h5", {"lora_A": np.ones((3, 2))}, RECORD | {"alpha": "nan"})
    got = run("verify", path)
    assert got.exit_code == 1
    for want in ("alpha must be a finite number", "lora_A must have shape (d, 1), found (3, 2)", "tensor 'lora_B' is missing"):
        assert want in got.stdout


def test_values_that_are_not_finite_are_faults(run, tmp_path):
    path = raw(tmp_path / "a.h5", {"lora_A": np.full((3, 1), np.inf), "lora_B": np.ones((1, 2))})
    got = run("verify", path)
    assert got.exit_code == 1
    assert "FAULT   adapter 'mine': tensor '0.lora_A' has 3 values that are NaN or infinite" in got.stdout


def test_zero_updates_are_cautions_and_strictly_faults(run, tmp_path):
    path = raw(tmp_path / "a.h5", {"lora_A": np.ones((3, 1)), "lora_B": np.zeros((1, 2))})
    got = run("verify", path)
    assert got.exit_code == 0
    assert "caution adapter 'mine': every update is zero" in got.stdout
    assert run("verify", path, "--strict").exit_code == 1


def test_a_file_without_checksums_says_so(run, files, tmp_path):
    run("export", files.adapters, tmp_path / "a.safetensors", "--to", "safetensors")
    got = run("verify", tmp_path / "a.safetensors")
    assert got.exit_code == 0
    assert "?       checksums: there are none" in got.stdout


def test_whether_it_fits_a_base(run, files, tmp_path):
    got = run("verify", files.adapters, "--base", files.base)
    assert got.exit_code == 0, got.stdout
    assert "adapter 'one': 2 modules fit the base" in got.stdout
    assert got.stdout.count("made for just these weights") == 2
    Hdf5Store().write(tmp_path / "base.h5", {"0.weight": np.ones((6, 7), np.float32), "0.bias": np.ones(5, np.float32)}, {})
    got = run("verify", files.adapters, "--base", tmp_path / "base.h5")
    assert got.exit_code == 1
    for want in ("'0.weight' acts as [6, 7]", "the base has no array '2.weight'", "adapter 'one' was made for another base"):
        assert want in got.stdout


def test_methods_without_a_plugin_are_left_unchecked(run, files, tmp_path):
    state = AdapterState("mine", {}, {"0.w": np.ones(3)}, {"0": {"method": "odd", "orientation": "torch"}})
    write_adapters(tmp_path / "a.h5", [state], stores=default_registry().stores)
    got = run("verify", tmp_path / "a.h5", "--base", files.base)
    assert got.exit_code == 0
    assert "?       adapter 'mine': whether its modules of odd fit the base" in got.stdout
    state = AdapterState("mine", {}, {"0.hada": np.ones(3)}, {"0": {"method": "loha", "orientation": "torch"}})
    write_adapters(tmp_path / "b.h5", [state], stores=default_registry().stores)
    got = run("verify", tmp_path / "b.h5", "--base", files.base)
    assert got.exit_code == 1
    assert "FAULT   adapter 'mine', module '0': its method 'loha' needs the parameters 'hada_w1_a'" in got.stdout


def test_json(run, files):
    got = json.loads(run("verify", files.adapters, "--json").stdout)
    assert got["sound"] is True
    assert got["format"] == "hdf5"
    assert got["faults"] == got["cautions"] == got["unchecked"] == []
    assert len(got["passed"]) == 5


@pytest.mark.parametrize(
    ("args", "code", "want"),
    [
        (["ghost.h5"], 1, "cannot read 'ghost.h5'"),
        (["{base}"], 1, "is no adapter file"),
        (["{adapters}", "--from", "ghost"], 1, "no format named 'ghost'"),
        (["{adapters}", "-O", "x=1"], 1, "has no option 'x'"),
        (["{adapters}", "--base-order", "input-first"], 2, "--base-order is for --base"),
    ],
)
def test_errors(run, files, args, code, want):
    got = run("verify", *(arg.format(base=files.base, adapters=files.adapters) for arg in args))
    assert got.exit_code == code
    assert want in " ".join((got.stdout + got.stderr).split())
