import json

import numpy as np
import pytest

from loratk.describe import describe, product_norm
from loratk.plugins import default_registry


def report(files):
    return describe(files.adapters, default_registry().stores)


def test_norms_are_those_of_the_arrays_and_of_the_dense_update(files):
    one, two = report(files).adapters
    state = files.model.state("one")
    for module in one.modules:
        a, b = (state[f"{module.name}.{key}"].astype(np.float64) for key in ("lora_A", "lora_B"))
        assert module.norms["lora_A"] == pytest.approx(np.linalg.norm(a), rel=1e-12)
        assert module.norms["lora_B"] == pytest.approx(np.linalg.norm(b), rel=1e-12)
        assert module.delta_norm == pytest.approx(np.linalg.norm(1.5 * a @ b), rel=1e-12)
        assert (module.rank, module.alpha, module.scaling) == (2, 3.0, 1.5)
    assert [module.delta_norm for module in two.modules] == [None]
    assert set(two.modules[0].norms) == {"lora_A", "lora_B", "magnitude"}


def test_the_norm_of_a_product_does_not_cancel():
    a = np.array([[1.0, 1.0], [1.0, 1.0 + 1e-9]])
    b = np.array([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    want = np.linalg.norm(a @ b)
    assert product_norm(a, b) == pytest.approx(want, rel=1e-6)
    assert want < 1e-8


def test_counts_and_shapes(files):
    one, two = report(files).adapters
    assert one.parameters == sum(array.size for array in files.model.state("one").values())
    assert [module.shape for module in one.modules] == [[6, 5], [5, 4]]
    assert [module.name for module in two.modules] == ["2"]
    assert one.fingerprint == files.model.fingerprint()
    assert one.metadata == {"task": "test"}


def test_text(run, files):
    got = run("inspect", files.adapters)
    assert got.exit_code == 0
    assert got.stderr == ""
    text = " ".join(got.stdout.split())
    assert "hdf5" in text
    assert "2 adapters" in text
    assert "adapter 'one'" in text
    assert "task: test" in text
    assert "0 lora 6 x 5 2 3 1.5" in text
    assert "2 dora 5 x 4 1 2 2" in text


def test_json_holds_all_of_it(run, files):
    got = json.loads(run("inspect", files.adapters, "--json").stdout)
    assert got == report(files).to_dict()
    assert got["store"] == "hdf5"
    assert got["bytes"] == files.adapters.stat().st_size
    assert got["adapters"][0]["config"]["rank"] == 2


def test_a_file_of_weights_shows_its_arrays(run, files):
    got = run("inspect", files.padded)
    text = " ".join(got.stdout.split())
    assert "5 arrays, no adapters" in text
    assert "0.weight 6 x 5 float32" in text
    assert "steps 3 int64" in text
    assert "note: kept" in text
    assert json.loads(run("inspect", files.padded, "--json").stdout)["strings"] == {"note": "kept"}


@pytest.mark.parametrize(("name", "content", "want"), [("none.h5", None, "cannot read"), ("text.txt", b"hello", "no store recognises")])
def test_what_cannot_be_read_is_an_error(run, tmp_path, name, content, want):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    got = run("inspect", tmp_path / name)
    assert got.exit_code == 1
    assert want in got.stderr


def test_a_damaged_file_is_an_error(run, files, tmp_path):
    whole = bytearray(files.adapters.read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "damaged.h5").write_bytes(whole)
    got = run("inspect", tmp_path / "damaged.h5")
    assert got.exit_code == 1
    assert "not as it was written" in got.stderr
