"""What a merged checkpoint says of its merges: nothing is added twice, and what was tampered with is noticed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from merge_files import STORES, adapter, base_file, base_folder, numbers, update

import loratk
from loratk.convert.checksums import ArrayChecksum, adapter_sha256, whole
from loratk.convert.ledger import LEDGER, parse
from loratk.errors import ConfigError, FormatError, StateError
from loratk.exchange import load_adapter, save_adapter
from loratk.io import find_store, open_safetensors, write_safetensors
from loratk.lora.fingerprint import fingerprint


def ledger(path):
    with find_store(path, STORES).open(path) as reader:
        return parse(reader.strings[LEDGER])


@pytest.mark.parametrize("end", ["safetensors", "h5", "npz"])
def test_everything_is_in_it(tmp_path, end):
    base = base_file(tmp_path / "base.safetensors")
    save_adapter(tmp_path / "x.h5", adapter("one"))
    out = tmp_path / f"out.{end}"
    done = loratk.merge(base, [tmp_path / "x.h5", adapter("two", seed=2)], out, weights=[1, -0.5], dtype="float16", stochastic=True, seed=7)
    (merge,) = ledger(out).merges
    assert [(a.name, a.weight, a.file) for a in merge.adapters] == [("one", 1.0, "x.h5"), ("two", -0.5, "")]
    assert [a.sha256 for a in merge.adapters] == [adapter_sha256(adapter("one")), adapter_sha256(adapter("two", seed=2))]
    assert (merge.dtype, merge.rounding, merge.seed, merge.loratk) == ("float16", "stochastic", 7, loratk.__version__)
    assert (merge.before, merge.after) == (done.before, done.after)
    assert ledger(out).base == merge.before


def test_checksums_do_not_depend_on_the_store(tmp_path):
    done = [loratk.merge(base_file(tmp_path / f"base.{end}"), adapter(), tmp_path / f"o.{end}", order="output-first")
            for end in ("safetensors", "h5", "npz")]  # fmt: skip
    done.append(loratk.merge(base_folder(tmp_path / "base"), adapter(), tmp_path / "o"))
    assert len({merged.before for merged in done}) == len({merged.after for merged in done}) == 1


def test_a_checksum_tells_names_dtypes_shapes_and_bytes_apart():
    def of(dtype, shape, data):
        made = ArrayChecksum(dtype, shape, len(data))
        made.add(0, data)
        return made.hex()

    data = bytes(range(24))
    others = [of("F32", [6], data), of("F32", [2, 3], data), of("I32", [6], data), of("F32", [6], data[::-1]), of("F32", [6], bytes(24))]
    assert len(set(others)) == 5
    assert whole({"a": others[0], "b": others[1]}) != whole({"b": others[0], "a": others[1]})
    ends = {of("U8", [n], bytes(n)) for n in range(20)}
    assert len(ends) == 20


def test_an_adapter_is_what_it_adds():
    """Not its name, metadata or dtype; but its modules, scalings and numbers."""
    mine = adapter()
    same = replace(adapter("other"), metadata={"a": "b"}, tensors={key: array.astype(np.float64) for key, array in mine.tensors.items()})
    assert adapter_sha256(same) == adapter_sha256(mine)
    other = [adapter(seed=2), adapter(size=2.0), adapter(scaling=3.0), adapter(method="dora"), adapter(modules={"a": (4, 5)})]
    assert len({adapter_sha256(state) for state in [mine, *other]}) == 6


@pytest.mark.parametrize("again", [False, True])
def test_the_same_adapter_is_refused_under_any_name_and_in_any_form(tmp_path, again):
    base = base_file(tmp_path / "base.safetensors", "float64")
    loratk.merge(base, adapter(), tmp_path / "one.safetensors")
    forms = []
    for place, (format, name) in enumerate([("peft", "x"), ("hdf5", "y.h5"), ("npz", "z.npz"), ("safetensors", "w.safetensors")]):
        save_adapter(tmp_path / name, adapter(), format=format)
        forms.append(tmp_path / name)
        out = tmp_path / f"out{place}.safetensors"
        (state,) = load_adapter(forms[-1]).states
        if again:
            loratk.merge(tmp_path / "one.safetensors", forms[-1], out, again=[state.name])
            np.testing.assert_allclose(numbers(out)["a.weight"], numbers(base)["a.weight"] + 2 * update(adapter(), "a"), rtol=1e-12)
            continue
        with pytest.raises(StateError, match="was merged before"):
            loratk.merge(tmp_path / "one.safetensors", forms[-1], out, weights=[0.5], select=["b"])
        assert not out.exists()


def test_twice_in_one_merge_is_refused_too(tmp_path):
    with pytest.raises(StateError, match="is given twice"):
        loratk.merge(base_file(tmp_path / "base.safetensors"), [adapter("a"), adapter("b")], tmp_path / "out.safetensors")


def test_again_must_be_needed(tmp_path):
    with pytest.raises(ConfigError, match="'mine' is to be merged again, but no adapter of that name was merged before"):
        loratk.merge(base_file(tmp_path / "base.safetensors"), adapter(), tmp_path / "out.safetensors", again=["mine"])


@pytest.mark.parametrize("make", [base_file, base_folder])
def test_another_adapter_is_added_to_the_ledger(tmp_path, make):
    end = ".safetensors" if make is base_file else ""
    base = make(tmp_path / f"base{end}", "bfloat16")
    one = loratk.merge(base, adapter("one"), tmp_path / f"one{end}")
    two = loratk.merge(tmp_path / f"one{end}", adapter("two", seed=2), tmp_path / f"two{end}")
    file = tmp_path / f"two{end}" if end else tmp_path / "two" / "model-1.safetensors"
    assert [a.name for a in ledger(file).adapters] == ["one", "two"]
    assert [merge.before for merge in ledger(file).merges] == [one.before, one.after]
    assert ledger(file).merges[-1].after == two.after
    with pytest.raises(StateError, match=r"adapter 'one' .* was merged before"):
        loratk.merge(tmp_path / f"two{end}", adapter("one"), tmp_path / f"three{end}")


@pytest.mark.parametrize("end", ["safetensors", "h5", "npz"])
def test_a_checkpoint_that_was_changed_after_merging_is_refused(tmp_path, end):
    base, store = base_file(tmp_path / "base.safetensors"), find_store(f"x.{end}", STORES, for_writing=True)
    loratk.merge(base, adapter("one"), tmp_path / f"one.{end}")
    with store.open(tmp_path / f"one.{end}") as reader:
        held, strings = {name: reader.array(name) for name in reader.names()}, dict(reader.strings)
    held["norm.weight"] = held["norm.weight"] + 1
    store.write(tmp_path / f"tuned.{end}", held, strings)
    order = None if end == "safetensors" else "output-first"
    with pytest.raises(FormatError, match="its arrays were changed after the last merge"):
        loratk.merge(tmp_path / f"tuned.{end}", adapter("two", seed=2), tmp_path / "out.safetensors", order=order)
    assert not (tmp_path / "out.safetensors").exists()
    loratk.merge(tmp_path / f"tuned.{end}", adapter("one"), tmp_path / "out.safetensors", order=order, new_ledger=True)
    assert [a.name for a in ledger(tmp_path / "out.safetensors").adapters] == ["one"]
    with pytest.raises(ConfigError, match="has no ledger of merges that could be left out"):
        loratk.merge(base, adapter("one"), tmp_path / "x.safetensors", new_ledger=True)


@pytest.mark.parametrize("how", ["base", "older", "damaged"])
def test_a_shard_of_another_checkpoint_is_noticed(tmp_path, how):
    base = base_folder(tmp_path / "base")
    loratk.merge(base, adapter("one"), tmp_path / "one")
    loratk.merge(tmp_path / "one", adapter("two", seed=2), tmp_path / "two")
    shard = tmp_path / "two" / "model-1.safetensors"
    if how == "damaged":
        with open_safetensors(shard) as reader:
            write_safetensors(shard, {n: reader.array(n) for n in reader.names()}, {LEDGER: reader.metadata[LEDGER].replace("one", "two")})
    else:
        shard.write_bytes((tmp_path / {"base": "base", "older": "one"}[how] / shard.name).read_bytes())
    with pytest.raises(FormatError, match="their ledgers of merges differ") as caught:
        loratk.merge(tmp_path / "two", adapter("three", seed=3), tmp_path / "out")
    assert "'model-0.safetensors', 'model-2.safetensors': a ledger of 2 merges, the last of 'two'" in str(caught.value)
    with pytest.raises(FormatError, match="their ledgers of merges differ"):
        loratk.unmerge(tmp_path / "two", tmp_path / "out", base=base)


@pytest.mark.parametrize(
    ("change", "want"),
    [
        (lambda record: "{", "is damaged"),
        (lambda record: json.dumps({**record, "version": 2}), "has version 2, loratk reads 1"),
        (lambda record: json.dumps({**record, "merges": []}), "contradicts itself"),
        (lambda record: json.dumps({**record, "base": "0" * 64}), "contradicts itself"),
        (lambda record: json.dumps({**record, "base": "x"}), "'x' is no checksum"),
        (lambda record: json.dumps({**record, "merges": [{**record["merges"][0], "adapters": []}]}), "0 adapters"),
        (lambda record: json.dumps({key: value for key, value in record.items() if key != "fingerprint"}), "fingerprint"),
    ],
)
def test_a_damaged_ledger_is_refused(tmp_path, change, want):
    loratk.merge(base_file(tmp_path / "base.safetensors"), adapter(), tmp_path / "one.safetensors")
    with open_safetensors(tmp_path / "one.safetensors") as reader:
        text = change(json.loads(reader.metadata[LEDGER]))
        write_safetensors(tmp_path / "bad.safetensors", {name: reader.array(name) for name in reader.names()}, {LEDGER: text})
    with pytest.raises(FormatError, match=want):
        loratk.merge(tmp_path / "bad.safetensors", adapter("two", seed=2), tmp_path / "out.safetensors")


def test_an_adapter_for_one_base_goes_into_what_was_made_of_it(tmp_path):
    """Its fingerprint is that of the base before the first merge, which the ledger knows if an adapter asked for it then."""
    base = base_file(tmp_path / "base.safetensors")
    mark = fingerprint(numbers(base))
    one, two = (replace(adapter(name, seed=seed), fingerprint=mark) for name, seed in (("one", 1), ("two", 2)))
    loratk.merge(base, one, tmp_path / "one.safetensors")
    loratk.merge(tmp_path / "one.safetensors", two, tmp_path / "two.safetensors")
    with pytest.raises(FormatError, match="was made for another base"):
        loratk.merge(tmp_path / "one.safetensors", replace(two, fingerprint="f" * 64), tmp_path / "x.safetensors")
    loratk.merge(base, adapter("three", seed=3), tmp_path / "three.safetensors")
    with pytest.raises(FormatError, match="before it was merged into is not known"):
        loratk.merge(tmp_path / "three.safetensors", two, tmp_path / "x.safetensors")
    loratk.merge(tmp_path / "three.safetensors", two, tmp_path / "x.safetensors", check_base=False)
