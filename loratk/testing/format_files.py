"""What a format must do with files that are cut or changed, and when its writing is cut off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from ..errors import LoratkError, StoreError
from ..exchange.state import AdapterState
from .format_same import assert_same_adapter

if TYPE_CHECKING:
    from .format import _Case

PLACES = 120
"""How many places of a file are tried."""


def files_of(path: Path) -> dict[str, bytes]:
    """Every file of a file or folder with its bytes; {} where there is none."""
    if path.is_dir():
        return {str(entry.relative_to(path)): entry.read_bytes() for entry in sorted(path.rglob("*")) if entry.is_file()}
    return {"": path.read_bytes()} if path.exists() else {}


def check_broken_files(case: _Case, state: AdapterState) -> None:
    """A file cut or changed anywhere, or missing from a folder, is refused or reads the same; no other error than a LoratkError."""
    case.write(state)
    want, broken = case.read(), case.folder / f"broken{case.path.suffix}"
    for name, content, whole in _damaged(case.path):
        if broken.is_dir():
            shutil.rmtree(broken)
        if case.path.is_dir():
            shutil.copytree(case.path, broken)
        target = broken / name if name else broken
        if content is None:
            target.unlink()
        else:
            target.write_bytes(content)
        what = f"{name or 'the file'}, {'removed' if content is None else 'cut' if whole else 'changed'},"
        with suppress(StoreError):
            case.format.detect(broken)  # any other error is a bug
        with suppress(LoratkError):
            case.format.adapters(broken)
        try:
            got = case.read(broken)
        except LoratkError:
            continue
        if whole:  # a byte that is changed may well be one of a number
            assert len(got) == len(want), f"{what} must be refused, or read as it was"
            for one, other in zip(got, want, strict=True):
                assert_same_adapter(one, other)


def _damaged(path: Path) -> Iterator[tuple[str, bytes | None, bool]]:
    """Each file's name with its bytes cut short (or None: removed), and with one byte changed; and whether what is there is unchanged."""
    for name, content in files_of(path).items():
        if name:
            yield name, None, True
        for at in range(0, len(content), max(1, len(content) // PLACES)):
            yield name, content[:at], True
            yield name, content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :], False


def check_broken_writes(case: _Case, first: AdapterState, second: AdapterState) -> None:
    """A write that fails, or is interrupted at any step, leaves the old adapter or the new one, whole, and no other file."""
    case.write(first)
    for state, others in ((second, first), (first, second)):
        old, beside = case.read(), _beside(case.folder)
        _check_readers(case, state)
        new = case.read()
        case.write(others)
        with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            _must_raise(StoreError, case, state)
        _check_left(case, old, new, beside, "on a full disk")
        for step in range(1, 20):
            if not _interrupted(case, state, step):
                break
            _check_left(case, old, new, beside, f"interrupted at step {step}")
            case.write(others)
        case.write(state)


def _check_readers(case: _Case, state: AdapterState) -> None:
    """Who reads the old file while a new one is written reads the old one to its end."""
    old = files_of(case.path) if os.name != "nt" else {}  # there, a file that is open cannot be replaced
    with ExitStack() as stack:
        readers = {name: stack.enter_context((case.path / name if name else case.path).open("rb")) for name in old}
        case.write(state)
        for name, reader in readers.items():
            assert reader.read() == old[name], f"a file {name!r} that is open must stay as it was; write beside it and rename (atomic_file)"


def _interrupted(case: _Case, state: AdapterState, step: int) -> bool:
    """Interrupt a write at the n-th time that it gives a file its name; whether it came so far."""
    count = 0

    def stop(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                raise KeyboardInterrupt
            return real(*arguments, **more)

        return call

    with mock.patch("os.replace", stop(os.replace)), mock.patch("os.rename", stop(os.rename)):
        try:
            case.write(state)
        except KeyboardInterrupt:
            return True
    return False


def _must_raise(kind: type[Exception], case: _Case, state: AdapterState) -> None:
    try:
        case.write(state)
    except kind:
        return
    raise AssertionError(f"write() must raise {kind.__name__} where the system cannot write, and force the bytes to the disk (atomic_file)")


def _check_left(case: _Case, old: list[AdapterState], new: list[AdapterState], beside: set[Path], when: str) -> None:
    try:
        got = case.read()
    except LoratkError as error:
        raise AssertionError(f"a write {when} must leave the old adapter or the new one, not {error}") from error
    for want in (old, new):
        with suppress(AssertionError):
            for one, other in zip(got, want, strict=True):
                assert_same_adapter(one, other)
            break
    else:
        raise AssertionError(f"a write {when} must leave the old adapter or the new one")
    left = _beside(case.folder) - beside
    assert not left, f"a write {when} must leave no other file, found {sorted(left)}"


def _beside(folder: Path) -> set[Path]:
    return set(folder.iterdir())
