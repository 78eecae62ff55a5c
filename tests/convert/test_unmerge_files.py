"""What was merged is taken out again, bit for bit: from the base, or from the residuals that were kept, checked by the ledger."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_files import KINDS, adapter, base_file, base_folder, bits, entries, numbers

import loratk
from loratk.convert.residual import difference, restored
from loratk.errors import ConfigError, FormatError, StateError, StoreError
from loratk.io import NpzStore, open_safetensors, write_safetensors


def made(tmp_path, make=base_file, dtype="float32", to=None):
    """A base, and a checkpoint that an adapter was merged into, with a residual."""
    end = ".safetensors" if make is base_file else ""
    base, out = make(tmp_path / f"base{end}", dtype), tmp_path / f"one{end}"
    return base, out, loratk.merge(base, adapter("one"), out, residual=tmp_path / "one.npz", dtype=to)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("make", [base_file, base_folder])
@pytest.mark.parametrize("way", ["base", "residual"])
def test_the_bits_come_back(tmp_path, dtype, make, way):
    base, merged, _ = made(tmp_path, make, dtype)
    assert bits(merged) != bits(base)
    given = {"base": base} if way == "base" else {"residuals": [tmp_path / "one.npz"]}
    done = loratk.unmerge(merged, tmp_path / f"back{base.suffix}", **given)
    assert bits(done.path) == bits(base)
    assert [a.name for a in done.adapters] == ["one"]
    assert done.left == []
    for file in [base] if base.is_file() else sorted(base.glob("*.safetensors")):
        back = done.path if base.is_file() else done.path / file.name
        assert back.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("to", KINDS)
def test_through_another_dtype(tmp_path, dtype, to):
    """Every array is another then, and numbers are lost that the residual has."""
    base, merged, _ = made(tmp_path, dtype=dtype, to=to)
    done = loratk.unmerge(merged, tmp_path / "back.safetensors", residuals=[tmp_path / "one.npz"])
    assert bits(done.path) == bits(base)


@pytest.mark.parametrize("end", ["h5", "npz"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_in_other_stores(tmp_path, end, dtype):
    base = base_file(tmp_path / f"base.{end}", dtype)
    loratk.merge(base, adapter("one"), tmp_path / f"one.{end}", order="output-first", residual=tmp_path / "kept.npz")
    for number, way in enumerate([{"base": base}, {"residuals": [tmp_path / "kept.npz"]}]):
        back = tmp_path / f"back{number}.{end}"
        loratk.unmerge(tmp_path / f"one.{end}", back, **way)
        assert bits(back) == bits(base)
        assert back.read_bytes() == base.read_bytes()


def test_from_a_store_without_bfloat16_back_to_it(tmp_path):
    base = base_file(tmp_path / "base.safetensors", "bfloat16")
    loratk.merge(base, adapter("one"), tmp_path / "one.h5", residual=tmp_path / "one.npz")
    with pytest.raises(ConfigError, match="only safetensors has bfloat16"):
        loratk.unmerge(tmp_path / "one.h5", tmp_path / "back.h5", residuals=[tmp_path / "one.npz"])
    loratk.unmerge(tmp_path / "one.h5", tmp_path / "back.safetensors", residuals=[tmp_path / "one.npz"])
    assert bits(tmp_path / "back.safetensors") == bits(base)


def test_one_merge_after_the_other(tmp_path):
    base, one, first = made(tmp_path, dtype="bfloat16")
    two, residuals = tmp_path / "two.safetensors", [tmp_path / "two.npz", tmp_path / "one.npz"]
    loratk.merge(one, adapter("two", seed=2), two, residual=residuals[0], stochastic=True)
    done = loratk.unmerge(two, tmp_path / "x.safetensors", residuals=residuals[:1])
    assert (tmp_path / "x.safetensors").read_bytes() == one.read_bytes()
    assert ([a.name for a in done.adapters], [a.name for a in done.left]) == (["two"], ["one"])
    for order in (residuals, residuals[::-1]):
        loratk.unmerge(two, tmp_path / "x.safetensors", residuals=order, force=True)
        assert (tmp_path / "x.safetensors").read_bytes() == base.read_bytes()
    with pytest.raises(StateError, match="merge 2 of 2, of 'two', has to be undone too"):
        loratk.unmerge(two, tmp_path / "y.safetensors", residuals=residuals[1:])
    done = loratk.unmerge(two, tmp_path / "y.safetensors", base=one)
    assert ([a.name for a in done.adapters], done.checksum) == (["two"], first.after)
    assert loratk.unmerge(two, tmp_path / "z.safetensors", base=base).left == []
    assert (tmp_path / "z.safetensors").read_bytes() == base.read_bytes()


def test_one_of_several_adapters(tmp_path):
    base, one, _ = made(tmp_path)
    two = tmp_path / "two.safetensors"
    loratk.merge(one, [adapter("two", seed=2), adapter("three", seed=3)], two, residual=tmp_path / "two.npz")
    with pytest.raises(StateError, match="'one' cannot be taken out alone: that would undo 'one', 'three', 'two'") as caught:
        loratk.unmerge(two, tmp_path / "x.safetensors", base=base, adapter="one")
    assert "merge 2: two, three" in str(caught.value)
    with pytest.raises(StateError, match="'two' cannot be taken out alone: that would undo 'three', 'two'"):
        loratk.unmerge(two, tmp_path / "x.safetensors", residuals=[tmp_path / "two.npz"], adapter="two")
    with pytest.raises(ConfigError, match="no adapter 'four' was merged; the ledger has 'one', 'three', 'two'"):
        loratk.unmerge(two, tmp_path / "x.safetensors", base=base, adapter="four")
    loratk.unmerge(one, tmp_path / "x.safetensors", base=base, adapter="one")
    assert bits(tmp_path / "x.safetensors") == bits(base)


def test_another_base_is_refused(tmp_path):
    _, merged, _ = made(tmp_path)
    other = base_file(tmp_path / "other.safetensors", seed=9)
    before = entries(tmp_path)
    for dry_run in (True, False):
        with pytest.raises(FormatError, match=r"other\.safetensors' is not what was merged into"):
            loratk.unmerge(merged, tmp_path / "back.safetensors", base=other, dry_run=dry_run)
    assert entries(tmp_path) == before


def changed(path, name="norm.weight"):
    """A file with one bit of an array changed, under the same strings."""
    with open_safetensors(path) as reader:
        held, strings = {name: reader.array(name) for name in reader.names()}, dict(reader.metadata)
    held[name].reshape(-1).view(np.uint8)[0] ^= 1
    write_safetensors(path, held, strings)


def test_a_merged_file_that_was_changed_is_refused(tmp_path):
    _, merged, _ = made(tmp_path)
    changed(merged)
    with pytest.raises(FormatError, match="was changed after it was merged"):
        loratk.unmerge(merged, tmp_path / "back.safetensors", residuals=[tmp_path / "one.npz"])
    assert not (tmp_path / "back.safetensors").exists()


def test_a_residual_that_was_changed_is_refused(tmp_path):
    _, merged, _ = made(tmp_path)
    contents = NpzStore().read(tmp_path / "one.npz")
    contents.arrays["a.weight"][3] ^= 2
    NpzStore().write(tmp_path / "one.npz", contents.arrays, contents.strings)
    with pytest.raises(FormatError, match="one of them was changed"):
        loratk.unmerge(merged, tmp_path / "back.safetensors", residuals=[tmp_path / "one.npz"])
    contents.arrays["a.weight"] = contents.arrays["a.weight"][:-1]
    NpzStore().write(tmp_path / "one.npz", contents.arrays, contents.strings)
    with pytest.raises(FormatError, match="80 bytes are needed"):
        loratk.unmerge(merged, tmp_path / "back.safetensors", residuals=[tmp_path / "one.npz"])
    NpzStore().write(tmp_path / "one.npz", contents.arrays | {"ghost": np.zeros(3, np.uint8)}, contents.strings)
    with pytest.raises(FormatError, match="arrays that the checkpoint lacks: 'ghost'"):
        loratk.unmerge(merged, tmp_path / "back.safetensors", residuals=[tmp_path / "one.npz"])
    NpzStore().write(tmp_path / "one.npz", contents.arrays, {"residual": '{"version": 1}'})
    with pytest.raises(FormatError, match="is damaged"):
        loratk.unmerge(merged, tmp_path / "back.safetensors", residuals=[tmp_path / "one.npz"])
    assert not (tmp_path / "back.safetensors").exists()


def test_what_cannot_be_undone_says_why(tmp_path):
    base, merged, _ = made(tmp_path)
    (tmp_path / "other").mkdir()
    made(tmp_path / "other", dtype="float64")
    out = tmp_path / "back.safetensors"
    for way, error, want in [
        ({}, ConfigError, "takes either the base"),
        ({"base": base, "residuals": [tmp_path / "one.npz"]}, ConfigError, "takes either the base"),
        ({"residuals": [tmp_path / "other" / "one.npz"]}, StateError, "a merge of 'one' that the ledger does not have"),
        ({"residuals": [tmp_path / "one.npz"] * 2}, StateError, "are of the same merge"),
        ({"residuals": [tmp_path / "none.npz"]}, StoreError, "cannot read"),
    ]:
        with pytest.raises(error, match=want):
            loratk.unmerge(merged, out, **way)
    with pytest.raises(StateError, match="has no ledger of merges"):
        loratk.unmerge(base, out, base=base)
    NpzStore().write(tmp_path / "x.npz", {"a": np.zeros(2)}, {})
    with pytest.raises(FormatError, match="is no residual of a merge"):
        loratk.unmerge(merged, out, residuals=[tmp_path / "x.npz"])
    with pytest.raises(StoreError, match="is there already"):
        loratk.merge(base, adapter("one"), tmp_path / "x.safetensors", residual=tmp_path / "one.npz")
    assert not out.exists()


def test_a_residual_is_small(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((300, 200)).astype(np.float32) * np.float32(0.02)
    write_safetensors(tmp_path / "base.safetensors", {"a.weight": weight}, {}, ["a.weight"])
    state = adapter(size=1e-3, modules={"a": (200, 300)})
    done = loratk.merge(tmp_path / "base.safetensors", state, tmp_path / "one.safetensors", residual=tmp_path / "one.npz")
    assert done.residual_size == (tmp_path / "one.npz").stat().st_size < 0.6 * 2 * weight.size
    assert numbers(tmp_path / "one.safetensors")["a.weight"].shape == (300, 200)


@settings(deadline=None, max_examples=80)
@given(width=st.sampled_from(["u1", "u2", "u4", "u8", "f2", "f4", "f8", "?"]), size=st.integers(0, 30), seed=st.integers(0, 99))
def test_any_bits_are_restored(width, size, seed):
    rng, kind = np.random.default_rng(seed), np.dtype(width)
    old, new = (rng.integers(0, 256, size * kind.itemsize, np.uint8).view(kind) for _ in range(2))
    assert restored(new, difference(old, new)).tobytes() == old.tobytes()
    assert not difference(old, old).any()
