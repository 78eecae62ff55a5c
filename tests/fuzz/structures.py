"""Changes that keep the rest of a file in order, so that they reach what lies behind its lengths and checksums."""

import io
import json
import re
import warnings
import zipfile

from loratk.io import seal

from .checksums import repaired
from .mutate import Mutator

VALUES = [
    0, -1, 1, 3, 2**31, 2**64, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "../x", "a/b", "\0", "\ud800", "NaN",
    "a" * 5000, None, True, False, [], {}, [[]], {"": {}}, [0] * 300, [2**40, 2**40],
]  # fmt: skip
MARKS = re.compile(rb"TREE|SNOD|HEAP|GCOL|OHDR|OCHK|FRHP|FHDB|BTHD|BTLF|\x11\0|\x0c\0")
NAMES = ["../up.npy", "/abs.npy", "a/../b.npy", "a.npy", "__loratk__.json", "x" * 300, "archive/data.pkl", "data/0", "\\", "ä.npy", ""]


def change(m: Mutator, data: bytes, other: bytes) -> bytes:
    """One file's bytes, changed by what they are, or anyhow."""
    if m.chance(0.3):
        return m.change(data, other)
    if data[8:9] == b"{":
        return safetensors(m, data, other)
    if data[:4] == b"PK\3\4":
        return archive(m, data, other)
    if data[:4] == b"\x89HDF":
        return hdf5(m, data, other)
    if data[:1] in (b"{", b"["):
        return json_text(m, data, other)
    return m.change(data, other)


def json_text(m: Mutator, data: bytes, other: bytes) -> bytes:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return m.change(data, other)
    for _ in range(1 + m.below(3)):
        tree = _changed(m, tree)
    text = json.dumps(tree, ensure_ascii=m.chance(0.5)).encode("utf-8", "surrogatepass")
    if m.chance(0.1):  # a key twice
        text = re.sub(rb"\{(\"[^\"]*\"): ", rb"{\1: 1, \1: ", text, count=1)
    if m.chance(0.03):
        text = text.replace(b"1", b"[" * m.pick([500, 100_000]), 1)
    return text


def _changed(m: Mutator, value):
    """A JSON value with one of its parts replaced, left out, renamed or doubled."""
    if isinstance(value, dict) and value and m.chance(0.9):
        key = m.pick(list(value))
        copy = dict(value)
        way = m.below(8)
        if way == 0:
            del copy[key]
        elif way == 1:
            copy[key + m.pick(["x", ".", "/", " ", ".weight", "_"])] = copy.pop(key)
        elif way == 2:
            copy[m.pick(list(value))] = value[key]
        elif way == 3:
            copy[str(m.pick(VALUES))] = m.pick(VALUES)
        else:
            copy[key] = _changed(m, value[key])
        return copy
    if isinstance(value, list) and value and m.chance(0.8):
        at = m.below(len(value))
        return [*value[:at], _changed(m, value[at]), *value[at + m.below(2) :]]
    if isinstance(value, int) and m.chance(0.5):
        return m.number(value)
    return m.pick(VALUES)


def safetensors(m: Mutator, data: bytes, other: bytes) -> bytes:
    """Its header as JSON, with the length before it; sometimes its tensors too."""
    length = int.from_bytes(data[:8], "little")
    head, rest = data[8 : 8 + length], data[8 + length :]
    head = json_text(m, head, other[8:]) if m.chance(0.7) else m.change(head, other)
    if m.chance(0.2):
        rest = m.change(rest, other)
    return len(head).to_bytes(8, "little") + head + rest


def archive(m: Mutator, data: bytes, other: bytes) -> bytes:
    """Its members, packed again with right checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            members = [(info.filename, old.read(info), info.compress_type) for info in old.infolist()]
    except Exception:
        return m.change(data, other)
    if not members:
        return m.change(data, other)
    at = m.below(len(members))
    name, content, method = members[at]
    way = m.below(10)
    if way == 0:
        del members[at]
    elif way == 1:
        members[at] = (m.pick(NAMES), content, method)
    elif way == 2:
        members.append((m.pick([name, *NAMES]), content, method))
    elif way == 3:
        members[at] = (name, content, m.pick([0, 8, 12, 14]))
    else:
        inner = json_text if content[:1] == b"{" else Mutator.change
        members[at] = (name, inner(m, content, other), method)
    if m.chance(0.9):  # else a seal is asked for that is not there
        members = [(name, content.replace(b'"sealed": true', b'"sealed": false'), method) for name, content, method in members]
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two members of one name
        try:
            with zipfile.ZipFile(made, "w") as new:
                for name, content, method in members:
                    new.writestr(zipfile.ZipInfo(name or "-"), content, method)
        except (ValueError, UnicodeError):
            return m.change(data, other)
    return made.getvalue() if m.chance(0.8) else m.change(made.getvalue(), other)


def hdf5(m: Mutator, data: bytes, other: bytes) -> bytes:
    """Near the marks of its structures and messages, under a new seal if it had one: a seal tells of damage, not of malice."""
    sealed = data[-seal.FOOTER.size :].startswith(seal.MAGIC)
    body = data[: int.from_bytes(data[-48:-40], "little")] if sealed else data
    for _ in range(1 + m.below(3)):
        marks = [found.start() for found in MARKS.finditer(body)]
        if not marks or m.chance(0.2):
            body = m.change(body, other)
            continue
        at = m.pick(marks)
        if m.chance(0.3):  # lead to another structure
            place = at + 4 * m.below(16)
            body = body[:place] + m.pick(marks).to_bytes(8, "little") + body[place + 8 :]
        else:
            piece = m.change(body[at : at + 64], other)
            body = body[:at] + (piece + body[at + len(piece) : at + 64])[:64] + body[at + 64 :]
        body = repaired(body, at)
    if not sealed or m.chance(0.1):
        return body
    file = io.BytesIO(body)
    seal.append_seal(file)
    return file.getvalue()
