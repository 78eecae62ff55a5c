"""The pickle in a file of torch.save, read without Python's pickle: a few opcodes build plain values, and nothing it names is ever called.

Python's own unpickler calls what the file names. This one has no call at all: names are compared to a list, the few on it have a meaning
of their own here (an empty dict, a view of a storage), and a file that says another is refused with all of them.
"""

from __future__ import annotations

import pickletools
import reprlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loratk.errors import FormatError, faults

DTYPES = {
    "BFloat16Storage": "bfloat16", "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "DoubleStorage": "float64",
    "FloatStorage": "float32", "HalfStorage": "float16", "IntStorage": "int32", "LongStorage": "int64", "ShortStorage": "int16",
}  # fmt: skip
DICT, TENSOR, PARAMETER = "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
KNOWN = {DICT, TENSOR, PARAMETER, *(f"torch.{storage}" for storage in DTYPES)}


@dataclass(frozen=True)
class Name:
    """Something the file names, such as torch.FloatStorage. It is never looked up."""

    path: str


@dataclass(frozen=True)
class Storage:
    """The numbers of one or several tensors: the entry of the archive they are in, their dtype, how many."""

    key: str
    dtype: str
    length: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Unknown:
    """What would have come of a name that is refused."""


def read_pickle(data: bytes) -> Any:
    """The value of a pickle: dicts, lists, tuples, text, numbers and tensors. Raises FormatError for anything else, each name listed.

    Time and memory grow with its length alone, by a few hundred bytes for each byte at most.
    """
    machine = _Machine(data)
    try:
        value = machine.run()
    except FormatError:
        if not machine.refused:
            raise
        value = None
    if machine.refused:
        title = "it is more than tensors: it names what is never looked up, let alone called (save the adapter's state_dict alone):"
        raise FormatError(faults(title, sorted(machine.refused)))
    return value


class _Machine:
    """A stack, a memo and the bytes: what a pickle runs on."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.refused: set[str] = set()

    def run(self) -> Any:
        """Follow the opcodes to the STOP."""
        while (code := self.take(1)) != b".":
            action = _ACTIONS.get(code)
            if action is None:
                known = pickletools.code2op.get(code.decode("latin-1"))
                raise self.fault(f"the opcode {known.name if known else code!r} has no place in a file of tensors")
            action(self)
        return self.pop()

    def fault(self, said: str) -> FormatError:
        """An error that says where."""
        return FormatError(f"at byte {self.at} of the pickle, {said}")

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if size > len(self.data) - self.at:
            raise self.fault("it ends too early: the file was cut short")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> Any:
        """The next number, of a form that `struct` knows."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, size: int) -> str:
        """The next text."""
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise self.fault("a text is no UTF-8") from error

    def line(self) -> str:
        """Text up to the end of the line."""
        end = self.data.find(b"\n", self.at, self.at + 256)
        if end < 0:
            raise self.fault("a name does not end")
        line = self.text(end - self.at)
        self.at += 1
        return line

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self, kind: type | tuple[type, ...] = object) -> Any:
        """Take the last value off the stack, above the last mark, of a type."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.fault("a value is missing")
        value = self.stack.pop()
        if not isinstance(value, kind):
            raise self.fault(f"{_shown(value)} has no place")
        return value

    def to_mark(self) -> list[Any]:
        """Take everything above the last mark off the stack, and the mark."""
        if not self.marks:
            raise self.fault("a mark is missing")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def remember(self, place: int) -> None:
        """Keep the last value under a number."""
        value = self.pop()
        self.memo[place] = value
        self.push(value)

    def recall(self, place: int) -> None:
        """Put a kept value on the stack again."""
        if place not in self.memo:
            raise self.fault(f"nothing was kept under {place}")
        self.push(self.memo[place])

    def name(self, module: str, name: str) -> None:
        """Put a name on the stack."""
        path = f"{module}.{name}"
        if path not in KNOWN:
            self.refused.add(_shown(path))
        self.push(Name(path) if path in KNOWN else Unknown())

    def extend(self, values: list[Any]) -> None:
        """Add values to the list that the stack ends in."""
        target = self.pop((list, Unknown))
        if isinstance(target, list):
            target += values
        self.push(target)

    def update(self, values: list[Any]) -> None:
        """Add keys and values to the dict that the stack ends in. Keys must be text or numbers: hashing others could go too deep."""
        target = self.pop((dict, Unknown))
        if len(values) % 2:
            raise self.fault("a key has no value")
        if isinstance(target, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                if type(key) not in (str, int) or key in target:
                    raise self.fault(f"a key must be text or a whole number, each given once, found {_shown(key)}")
                target[key] = value
        self.push(target)

    def storage(self) -> None:
        """What torch calls a persistent id: ("storage", its type, its key, its device, its length)."""
        value = self.pop((tuple, Unknown))
        match value:
            case ("storage", Name(path=path), str(key), _, int(length)) if path.rpartition(".")[2] in DTYPES:
                self.push(Storage(key, DTYPES[path.rpartition(".")[2]], length))
            case _:
                if not self.refused:
                    raise self.fault(f"{_shown(value)} describes no storage")
                self.push(Unknown())

    def reduce(self) -> None:
        """What would be a call: one of three known names with arguments of one form each."""
        arguments, name = self.pop((tuple, Unknown)), self.pop((Name, Unknown))
        match name, arguments:
            case Name(path=path), () if path == DICT:
                self.push({})
            case Name(path=path), (Storage() as held, int(offset), tuple(shape), tuple(strides), bool(), dict(), *_) if path == TENSOR:
                if len(shape) != len(strides) or not all(type(size) is int for size in (*shape, *strides)):
                    raise self.fault(f"a tensor has the shape {_shown(shape)} and the strides {_shown(strides)}")
                self.push(Tensor(held, offset, shape, strides))
            case Name(path=path), (Tensor() as tensor, bool(), dict()) if path == PARAMETER:
                self.push(tensor)
            case _:
                if not self.refused:
                    raise self.fault(f"{_shown(name)} of {_shown(arguments)} makes no tensor")
                self.push(Unknown())

    def build(self) -> None:
        """Attributes of an object: those of a state_dict, its versions, are left out."""
        attributes, target = self.pop(), self.pop((dict, Unknown))
        if isinstance(target, dict) and not (isinstance(attributes, dict) and set(attributes) <= {"_metadata"}):
            raise self.fault(f"a dict has the attributes {_shown(attributes)}")
        self.push(target)

    def instance(self) -> None:
        """An object of a class, which no file of tensors has."""
        self.pop()
        if isinstance(name := self.pop((Name, Unknown)), Name):
            self.refused.add(_shown(name.path))
        self.push(Unknown())


def _shown(value: Any) -> str:
    return _REPR.repr(value)


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxtuple, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxother = 2, 6, 3, 3, 80, 80


def _long(machine: _Machine) -> int:
    return int.from_bytes(machine.take(machine.number("B")), "little", signed=True)


_ACTIONS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"\x8a": lambda m: m.push(_long(m)),
    b"G": lambda m: m.push(m.number(">d")),
    b"X": lambda m: m.push(m.text(m.number("<I"))),
    b"\x8c": lambda m: m.push(m.text(m.number("B"))),
    b"}": lambda m: m.push({}),
    b"]": lambda m: m.push([]),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.to_mark())),
    b"\x85": lambda m: m.push((m.pop(),)),
    b"\x86": lambda m: m.push((m.pop(), m.pop())[::-1]),
    b"\x87": lambda m: m.push((m.pop(), m.pop(), m.pop())[::-1]),
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.to_mark()),
    b"s": lambda m: m.update([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.update(m.to_mark()),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": lambda m: m.name(*[m.pop(str), m.pop(str)][::-1]),
    b"Q": lambda m: m.storage(),
    b"R": lambda m: m.reduce(),
    b"b": lambda m: m.build(),
    b"\x81": lambda m: m.instance(),
    b"h": lambda m: m.recall(m.number("B")),
    b"j": lambda m: m.recall(m.number("<I")),
    b"q": lambda m: m.remember(m.number("B")),
    b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": lambda m: m.remember(len(m.memo)),
}
"""What each opcode does, but for STOP. All others (calls of other kinds, extensions, buffers, text opcodes of protocol 0) are refused."""
