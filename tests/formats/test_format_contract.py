"""Every registered format against the shipped contract, and that the contract finds what breaks it."""

import shutil

import numpy as np
import pytest
from format_examples import EXAMPLES, FORMATS

from loratk.errors import ConfigError, FormatError
from loratk.exchange import AdapterFormat, Reading
from loratk.exchange.stores import StoreFormat
from loratk.io import NpzStore, SafetensorsStore
from loratk.io.bfloat16 import to_bits, to_float32
from loratk.testing import assert_same_adapter, check_format, format_states


def test_every_format_has_an_example():
    assert sorted(EXAMPLES) == sorted(FORMATS)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_contract(name, tmp_path):
    example = EXAMPLES[name]
    reads, writes = example.request(example.reads), example.request(example.writes)
    check_format(FORMATS[name], tmp_path, states=example.states(), reads=reads, writes=writes)


@pytest.mark.parametrize("written", sorted(name for name, format in FORMATS.items() if format.writable))
def test_no_other_format_claims_what_one_writes(written, tmp_path):
    format, example = FORMATS[written], EXAMPLES[written]
    path = tmp_path / "no suffix"
    format.write(path, [example.states()["a linear layer"]], example.request(example.writes))
    assert [name for name, other in FORMATS.items() if other.detect(path) is not None] == [written]


# What the contract finds


class Good(StoreFormat):
    """Changed by the classes below."""

    def __init__(self):
        super().__init__(NpzStore())
        self.carries = dict(self.carries)


class Unanswered(Good):
    def __init__(self):
        super().__init__()
        del self.carries["dora"]


class ByName(Good):
    def detect(self, path):
        return "its name" if path.suffix == ".npz" else super().detect(path)


class Claiming(Good):
    def detect(self, path):
        return "it is a file" if path.is_file() else None


class Raising(Good):
    def detect(self, path):
        if not path.stat().st_size:
            raise IndexError
        return super().detect(path)


class Loading(Good):
    def adapters(self, path):
        return [state.name for state in self.read(path, _request()).states]


class Rounding(Good):
    def read(self, path, request):
        reading = super().read(path, request)
        for state in reading.states:
            for key, tensor in state.tensors.items():
                state.tensors[key] = to_float32(to_bits(np.asarray(tensor, np.float32)))
        return reading


class Transposing(Good):
    def read(self, path, request):
        reading = super().read(path, request)
        for state in reading.states:
            for module, held in state.parameters().items():
                if state.modules[module].get("shape") == [5, 3] and state.modules[module]["rank"] == 3:
                    state.tensors[f"{module}.lora_B"] = np.ascontiguousarray(held["lora_B"].T)
        return reading


class Unscaled(Good):
    def read(self, path, request):
        reading = super().read(path, request)
        for state in reading.states:
            for record in state.modules.values():
                if record.get("scaling") == 2.5:
                    record["scaling"] = record["alpha"]
        return reading


class Refusing(Good):
    def write(self, path, states, request):
        if any("groups" in record for state in states for record in state.modules.values()):
            raise ConfigError("no groups")
        return super().write(path, states, request)


class WrongError(Good):
    def __init__(self):
        super().__init__()
        self.carries["conv"] = "in part"

    def write(self, path, states, request):
        if any("kernel" in record for state in states for record in state.modules.values()):
            raise FormatError("no windows")
        return super().write(path, states, request)


class InPlace(Good):
    def write(self, path, states, request):
        beside = path.with_name("in between.npz")
        notes = super().write(beside, states, request)
        path.write_bytes(beside.read_bytes())
        beside.unlink()
        return notes


class Emptying(Good):
    def write(self, path, states, request):
        path.unlink(missing_ok=True)
        return super().write(path, states, request)


class Littering(Good):
    def write(self, path, states, request):
        shutil.copy(path, path.with_name("old.npz")) if path.exists() else None
        notes = super().write(path, states, request)
        path.with_name("old.npz").unlink(missing_ok=True)
        return notes


class Lenient(Good):
    def read(self, path, request):
        try:
            return super().read(path, request)
        except FormatError:
            return Reading([])


class Careless(Good):
    def read(self, path, request):
        content = path.read_bytes()
        if len(content) < 700:
            content[699]
        return super().read(path, request)


class Nameless(Good):
    def write(self, path, states, request):
        (state, *_) = states
        if any("/" in module for module in state.modules):
            path.with_name("elsewhere").write_bytes(b"")
        return super().write(path, states, request)


class Half(Good):
    def read(self, path, request):
        reading = super().read(path, request)
        return Reading(reading.states[:1])


class ReadsOnly(Good):
    def __init__(self):
        super().__init__()

    writable = False


def _request():
    from loratk.exchange import Request

    return Request()


BROKEN = {
    Unanswered: r"carries must answer each of FEATURES.*dora",
    ByName: r"must be None for b''",
    Claiming: r"detect\(\) must be None",
    Raising: None,
    Loading: r"must not load tensors",
    Rounding: r"the values changed",
    Transposing: r"gate_proj.lora_B: the values changed",
    Unscaled: r"got scaling 5.0, want 2.5",
    Refusing: r"grouped conv2d: carries says yes",
    WrongError: r"must be refused with a ConfigError",
    InPlace: r"that is open must stay as it was",
    Emptying: r"must leave the old adapter or the new one, not cannot read",
    Littering: r"must leave no other file",
    Lenient: r"must be refused, or read as it was",
    Careless: None,
    Nameless: r"made write\(\) leave",
    Half: r"must give every adapter",
    ReadsOnly: r"must raise ConfigError",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_contract_finds_a_broken_format(broken, tmp_path):
    said = BROKEN[broken]
    if said is None:
        with pytest.raises(IndexError):
            check_format(broken(), tmp_path)
    else:
        with pytest.raises((AssertionError, FormatError), match=said):
            check_format(broken(), tmp_path)


def test_the_good_one_passes(tmp_path):
    check_format(Good(), tmp_path)


def test_a_format_that_only_reads(tmp_path):
    class Reader(AdapterFormat):
        name, title, carries = "reader", "Reader", dict.fromkeys(Good().carries, "yes")

        def detect(self, path):
            return None

        def adapters(self, path):
            return []

        def read(self, path, request):
            return Reading([])

    check_format(Reader(), tmp_path)


# Two states, the same or not


def test_equal_updates_of_other_factors():
    state = format_states()["two linear layers"]
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    tensors = {key: array @ turn if key.endswith("A") else turn.T @ array for key, array in state.tensors.items()}
    other = type(state)(state.name, {}, tensors, state.modules)
    assert_same_adapter(other, state, exact=False)
    with pytest.raises(AssertionError, match=r"values changed|cannot hold"):
        assert_same_adapter(other, state)
    tensors["model.layers.0.mlp.up_proj.lora_B"] *= 1.0001
    with pytest.raises(AssertionError, match=r"differs by 0\.0001 of it"):
        assert_same_adapter(other, state, exact=False)


def test_stores_of_loratk_carry_everything():
    """So that no other test passes because nothing was asked of them."""
    assert set(StoreFormat(SafetensorsStore()).carries.values()) <= {"yes", "as float32, with a mark"}
