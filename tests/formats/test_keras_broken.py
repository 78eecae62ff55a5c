"""`.lora.h5` files that are broken on purpose, and damage anywhere."""

import warnings

import h5py
import numpy as np
import pytest
from keras_files import GEMMA, loaded, module, pair, state_of, written

from loratk.errors import FormatError, LoratkError
from loratk.exchange import load_adapter, save_adapter

A, B = pair()
BROKEN = {
    "no rank": ({0: (A, B)}, lambda file: file.pop("lora/vars/rank"), "'lora/vars/rank' is missing"),
    "rank 0": ({0: (A, B)}, lambda file: rank_of(file, np.int64(0)), "must be one whole number from 1 up, found 0"),
    "a negative rank": ({0: (A, B)}, lambda file: rank_of(file, np.int64(-2)), "found -2"),
    "a rank beyond all": ({0: (A, B)}, lambda file: rank_of(file, np.uint64(2**63)), "found 9223372036854775808"),
    "a rank that is no whole number": ({0: (A, B)}, lambda file: rank_of(file, 2.0), "found 2.0"),
    "two ranks": ({0: (A, B)}, lambda file: rank_of(file, [2, 2]), r"found int64 \(2,\)"),
    "another rank": ({0: (A, B), 7: pair(rank=3)}, None, r"layer 7: the rank of the file is 2, but lora_kernel_a is \(6, 3\)"),
    "halves that differ": ({0: (A, pair(rank=3)[1])}, None, r"lora_kernel_a is \(6, 2\) and lora_kernel_b \(3, 4\)"),
    "half a layer": ({0: (A, B), 5: (A, B)}, lambda file: file.pop("lora/5/vars/lora_kernel_b"), "'lora/5/vars/lora_kernel_b' is missing"),
    "no layer": ({}, None, "it holds no factors"),
    "an update beside": ({0: (A, B)}, lambda file: put(file, "lora/0/vars/lora_embeddings_a", A), "unexpected array 'lora/0"),
    "one elsewhere": ({0: (A, B)}, lambda file: put(file, "lora/vars/alpha", 4.0), "unexpected array 'lora/vars/alpha'"),
    "no number": ({"query": (A, B), "01": (A, B), "²": (A, B), "9" * 30: (A, B)}, None, "(?s)'01' is no.*'9999.*'query' is no.*'²' is"),
    "whole numbers": ({0: (A.astype(np.int32), B)}, None, "must be of floating-point numbers, found int32"),
    "too few axes": ({0: (A[0], B)}, None, "must have 2 to 16 axes"),
    "too many axes": ({0: (np.zeros((1,) * 20 + (2,), np.float32), B)}, None, "must have 2 to 16 axes"),
    "three axes for b": ({0: (A, B[None])}, None, "and lora_kernel_b 2"),
    "nothing in it": ({0: (A[:0], B)}, None, "none of length 0"),
    "NaN": ({0: (A * np.nan, B)}, None, "12 values that are NaN or infinite"),
    "text": ({0: (A, B)}, lambda file: replaced(file, "lora/0/vars/lora_kernel_a", np.bytes_(b"x")), "is missing|unexpected"),
    "a soft link": ({0: (A, B)}, lambda file: put(file, "lora/1", h5py.SoftLink("/lora/0")), "'lora/1' is a soft link"),
    "an external link": ({0: (A, B)}, lambda file: put(file, "lora/1", h5py.ExternalLink("other.h5", "/lora/0")), "external link"),
    "a loop": ({0: (A, B)}, lambda file: put(file, "lora/0/again", file["lora"]), "also reached by another path"),
}  # fmt: skip


def rank_of(file, value):
    replaced(file, "lora/vars/rank", value)


def replaced(file, name, value):
    del file[name]
    file[name] = value


def put(file, name, value):
    file[name] = value


@pytest.mark.parametrize(("layers", "edit", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused(layers, edit, said, tmp_path):
    path = written(tmp_path / "a.lora.h5", layers, edit=(lambda file: edit(file) and None) if edit else None)
    with pytest.raises(FormatError, match=said):
        load_adapter(path, format="keras")
    with pytest.raises(LoratkError):
        load_adapter(path)


def test_every_fault_is_told_at_once(tmp_path):
    layers = {0: (A[0], B), 3: pair(rank=3), "x": (A, B)}
    path = written(tmp_path / "a.lora.h5", layers, edit=lambda file: put(file, "lora/more", A))
    with pytest.raises(FormatError) as caught:
        load_adapter(path)
    assert all(said in str(caught.value) for said in ("a.lora.h5", "layer 0", "layer 3", "'x'", "'lora/more'"))


def test_data_in_other_files_and_bombs(tmp_path):
    def external(file):
        file.create_dataset("lora/1/vars/lora_kernel_a", (6, 2), "f4", external=[("/etc/passwd", 0, 48)])

    def virtual(file):
        layout = h5py.VirtualLayout((6, 2), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (6, 2))
        file.create_virtual_dataset("lora/1/vars/lora_kernel_a", layout)

    def bomb(file):
        file.create_dataset("lora/1/vars/lora_kernel_a", (1 << 16, 1 << 16), "f4", chunks=(1 << 10, 1 << 10), compression="gzip")

    for edit, said in ((external, "external file"), (virtual, "virtual dataset"), (bomb, "bomb|stores none")):
        path = written(tmp_path / "a.lora.h5", {0: (A, B)}, edit=edit)
        with pytest.raises(FormatError, match=said):
            load_adapter(path)


def test_what_is_allowed_to_be_missing(tmp_path):
    path = written(tmp_path / "a.lora.h5", {0: (A, B), 5: (A, B)})
    with h5py.File(path, "r+") as file:
        del file["lora/5/vars/lora_kernel_b"], file["lora/vars/rank"]
    missing = ["lora/5/vars/lora_kernel_b", "lora/vars/rank"]
    with pytest.raises(FormatError, match=r"(?s)lora_kernel_b' is missing.*rank' is missing"):
        load_adapter(path)
    state, notes = loaded(path, allow_missing=missing)
    assert list(state.modules) == ["layer_0"]
    assert "layer 5 is left out: 'lora/5/vars/lora_kernel_b' is missing, which was allowed" in notes
    assert any("the rank is that of the factors, 2" in note for note in notes)


def test_arrays_outside_are_left_alone(tmp_path):
    state, notes = loaded(written(tmp_path / "a.lora.h5", {0: (A, B)}, edit=lambda file: put(file, "mine/x", A)))
    assert state.tensors["layer_0.lora_A"].tobytes() == A.tobytes()
    assert "1 arrays outside of /lora are left alone, such as 'mine/x'" in notes


BESIDE = {
    "a number without factors": (
        "layers/9",
        {"name": "x", "alpha": "1", "scaling": "1"},
        "layer 9, 'x' as loratk wrote it, has no factors",
    ),
    "NaN": ("layers/0", {"alpha": "NaN"}, "alpha must be a finite number, found 'NaN'"),
    "a number beyond all": ("layers/0", {"scaling": "1" + "0" * 400}, "scaling must be a finite number"),
    "no name": ("layers/0", {"name": "a\x1bb"}, "control characters"),
    "another kind": ("layers/0", {"layer_type": "conv2d"}, "a layer of the type conv2d has no kernel of 2 axes"),
    "groups": ("layers/0", {"groups": "0"}, "groups must be a whole number"),
    "groups that are none": ("layers/0", {"groups": "2"}, "connects them with each other"),
    "an equation": ("layers/0", {"equation": "x"}, "no equation"),
    "deep": ("", {"config": "[" * 100_000}, "its config, as loratk wrote it, is no JSON"),
    "twice": ("", {"metadata": '{"a": "1", "a": "2"}'}, "a key is given twice"),
    "no object": ("", {"metadata": "[1]"}, "must be a JSON object"),
    "no strings": ("", {"metadata": '{"a": 1}'}, "metadata must be a dict of strings"),
    "no layer": ("layers/x", {"name": "a"}, "'loratk/layers/x' is no layer number"),
    "another version": ("", {"format_version": "2"}, "is of version '2'"),
    "no adapter name": ("", {"name": ""}, "an adapter needs a name"),
}


@pytest.mark.parametrize(("group", "attributes", "said"), BESIDE.values(), ids=BESIDE)
def test_what_stands_beside_is_checked(group, attributes, said, tmp_path):
    save_adapter(tmp_path / "a.lora.h5", state_of(layer_0=module()))
    with h5py.File(tmp_path / "a.lora.h5", "r+") as file:
        del file.attrs["__loratk_seal__"]
        place = file.require_group(f"loratk/{group}")
        for key, value in attributes.items():
            place.attrs[key] = value
    with pytest.raises(FormatError, match=said):
        load_adapter(tmp_path / "a.lora.h5")


def test_any_damage_is_a_fault_of_the_file(tmp_path):
    """Some bytes changed, anywhere: it loads, or it is refused; and with the seal it is always refused."""
    rng = np.random.default_rng(0)
    save_adapter(tmp_path / "own.lora.h5", state_of(layer_0=module()))
    for source, sealed in ((GEMMA, False), (tmp_path / "own.lora.h5", True)):
        data = source.read_bytes()
        for _ in range(150):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                broken[place] ^= int(rng.integers(1, 256))
            (tmp_path / "x.lora.h5").write_bytes(broken)
            try:
                load_adapter(tmp_path / "x.lora.h5", format="keras")
                assert not sealed
            except LoratkError:
                pass


def test_a_signalling_nan_is_told_as_any_nan(tmp_path):
    """It makes NumPy warn where it is converted, as its scaling is taken out of lora_B."""
    save_adapter(tmp_path / "a.lora.h5", state_of(layer_0=module(scaling=2.0)))
    with h5py.File(tmp_path / "a.lora.h5", "r+") as file:
        del file.attrs["__loratk_seal__"]
        name = next(name for name in ("lora/0/vars/lora_kernel_b", "lora/0/vars/lora_embeddings_b") if name in file)
        values = np.array(file[name])
        values.view(np.uint32).flat[0] = 0x7FA00000
        file[name][...] = values
    with pytest.raises(FormatError, match="1 value that is NaN or infinite"), warnings.catch_warnings(action="error"):
        load_adapter(tmp_path / "a.lora.h5")
