"""Where the result of a merge goes, what is in its way, what a dry run tells, and which adapters of which files are merged."""

from types import SimpleNamespace

import numpy as np
import pytest
from merge_files import adapter, arrays, base_file, base_folder, bits, entries, numbers, update

import loratk
from loratk.convert.partial import partial_folder
from loratk.errors import ConfigError, FormatError, StoreError
from loratk.exchange import save_adapter
from loratk.io import write_safetensors


def test_what_is_in_the_way_stays(tmp_path):
    base = base_file(tmp_path / "base.safetensors")
    (tmp_path / "out.safetensors").write_bytes(b"mine")
    with pytest.raises(StoreError, match="is there already"):
        loratk.merge(base, adapter(), tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == b"mine"
    loratk.merge(base, adapter(), tmp_path / "out.safetensors", force=True)
    folder = base_folder(tmp_path / "base")
    with pytest.raises(StoreError, match="it is the folder that is read"):
        loratk.merge(folder, adapter(), folder, force=True)
    loratk.merge(folder, adapter(), tmp_path / "out")
    before = bits(tmp_path / "out")
    loratk.merge(folder, adapter(seed=2), tmp_path / "out", force=True)
    assert bits(tmp_path / "out") != before
    (tmp_path / "out" / "thesis.txt").write_text("all my work")
    with pytest.raises(StoreError, match=r"holds 'thesis.txt', which the result does not"):
        loratk.merge(folder, adapter(), tmp_path / "out", force=True)
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_a_file_may_be_merged_into_itself(tmp_path):
    base, mode = base_file(tmp_path / "base.safetensors"), 0o640
    base.chmod(mode)
    loratk.merge(base, adapter(), base, force=True)
    np.testing.assert_allclose(numbers(base)["a.weight"], arrays()["a.weight"] + update(adapter(), "a"), rtol=1e-6)
    assert base.stat().st_mode & 0o777 == mode


def test_a_dry_run_tells_what_does_not_fit_and_writes_nothing(tmp_path):
    base = base_file(tmp_path / "base.safetensors")
    done = loratk.merge(base, adapter(), tmp_path / "out.safetensors", dry_run=True)
    assert (done.faults, done.written, [array.name for array in done.changed]) == ([], False, ["a.weight", "b.weight"])
    wrong = adapter(modules={"a": (4, 4), "c": (2, 2)})
    done = loratk.merge(base, wrong, tmp_path / "out.safetensors", dry_run=True)
    assert any("the base has no array 'c.weight'" in fault for fault in done.faults)
    assert len(done.faults) == 2
    with pytest.raises(FormatError, match=r"no array 'c\.weight'"):
        loratk.merge(base, wrong, tmp_path / "out.safetensors")
    assert entries(tmp_path) == ["base.safetensors"]


def test_files_of_adapters_by_format_name_and_module(tmp_path):
    base = base_file(tmp_path / "base.safetensors", "float64")
    save_adapter(tmp_path / "two.h5", [adapter("one"), adapter("two", seed=2)])
    save_adapter(tmp_path / "peft", adapter("one"), format="peft")
    done = loratk.merge(base, [tmp_path / "two.h5"], tmp_path / "x.safetensors", names=["two"], rename={"a": "b2", "b": "b"}, select=["b"])
    assert [(a.name, a.file, a.weight) for a in done.adapters] == [("two", "two.h5", 1.0)]
    assert [array.name for array in done.changed] == ["b.weight"]
    loratk.merge(base, tmp_path / "peft", tmp_path / "y.safetensors")
    loratk.merge(base, adapter("one"), tmp_path / "z.safetensors")
    assert bits(tmp_path / "y.safetensors") == bits(tmp_path / "z.safetensors")


def test_a_folder_that_went_aside_comes_back(tmp_path):
    """As if a process had been killed between the two steps in which one folder takes the place of another."""
    base = base_folder(tmp_path / "base")
    loratk.merge(base, adapter(), tmp_path / "out")
    aside = tmp_path / f"{partial_folder(tmp_path / 'out').name}-old"
    (tmp_path / "out").rename(aside)
    with pytest.raises(FormatError, match="no array 'c\\.weight'"):
        loratk.merge(base, adapter(modules={"c": (2, 2)}), tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="is there already"):
        loratk.merge(base, adapter(), tmp_path / "out")
    (tmp_path / "out").rmdir()
    loratk.merge(base, adapter(seed=2), tmp_path / "out")
    assert not aside.exists()


def test_a_dry_run_tells_where_there_is_no_room(tmp_path, monkeypatch):
    base = base_file(tmp_path / "base.safetensors")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    done = loratk.merge(base, adapter(), tmp_path / "out.safetensors", dry_run=True)
    assert [f"it takes {done.size:,} bytes, and 100 are free" in fault for fault in done.faults] == [True]
    done = loratk.merge(base, adapter(), tmp_path / "deep" / "out.safetensors", dry_run=True)
    assert [fault.startswith("there is no folder") for fault in done.faults] == [True]


def test_a_residual_must_have_a_folder(tmp_path):
    base = base_file(tmp_path / "base.safetensors")
    with pytest.raises(StoreError, match="there is no folder"):
        loratk.merge(base, adapter(), tmp_path / "out.safetensors", residual=tmp_path / "deep" / "kept.npz")
    assert entries(tmp_path) == ["base.safetensors"]


def test_weights_are_finite_numbers_one_for_each_adapter(tmp_path):
    base = base_file(tmp_path / "base.safetensors")
    for weights, want in (([1, 2], "1 adapters and 2 weights"), ([float("inf")], "a weight must be a finite number, found inf")):
        with pytest.raises(ConfigError, match=want):
            loratk.merge(base, adapter(), tmp_path / "out.safetensors", weights=weights)


def test_beside_what_is_nobodys(tmp_path):
    """A base with arrays of no elements and of no axes."""
    held = {"a.weight": np.zeros((0, 4), np.float32), "b.weight": np.ones((6, 5), np.float32), "s": np.array(3.0), "e": np.zeros(0)}
    write_safetensors(tmp_path / "base.safetensors", held, {})
    state = adapter(modules={"a": (4, 0), "b": (5, 6)})
    for module in state.modules.values():
        del module["shape"]
    for end in ("safetensors", "h5", "npz"):
        out, kept = tmp_path / f"out.{end}", tmp_path / "kept.npz"
        loratk.merge(tmp_path / "base.safetensors", state, out, residual=kept, order="output-first", force=True)
        loratk.unmerge(out, tmp_path / "back.safetensors", residuals=[kept], force=True)
        assert bits(tmp_path / "back.safetensors") == bits(tmp_path / "base.safetensors")
