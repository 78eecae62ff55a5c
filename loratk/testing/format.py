"""The contract of an adapter format, as one function that a plugin author runs over theirs."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import ConfigError, FormatError, LoratkError, StoreError
from ..exchange.fit import DROPPED, fit, needs
from ..exchange.format import FEATURES, AdapterFormat, Option, Request
from ..exchange.hub import check_options, state_faults
from ..exchange.state import AdapterState
from ..exchange.stores import StoreFormat
from ..io.builtin import register_stores
from .format_files import check_broken_files, check_broken_writes, files_of
from .format_same import assert_same_adapter
from .format_states import format_states

FOREIGN = (b"", b"x", b"\0" * 600, b"plain text\n" * 50, b"{}", b"\x80\x04N.", b"\xff" * 8 + b"{", b"\2" + b"\0" * 7 + b"{}")
"""What no format is."""
HEADS = (b"GGUF" + b"\xff" * 60, b"PK\3\4" + b"\0" * 60, b"\x89HDF\r\n\x1a\n" + b"\0" * 60, b"\xff\xff" + b"\0" * 6 + b"{")
"""Broken files of known containers, which their format may claim."""
CONFIGS = (b"", b"{", b"[]", b"{}", b'{"a": 1, "a": 2}', b"[" * 100_000, b"\xff\xfe")
HARD = ("float64", "alpha 0")
"""States that a format may refuse or hold another way though it carries all they need: not every one has float64, or takes 0 for 0."""
ODD_NAMES = ("0", "lora", "lora_A.default.weight", "base_model.model.q", "größe.層", "a b", "a/b", "a_b.c", "..", "a..b", "x\ny", "")


def check_format(
    format: AdapterFormat,
    tmp_path: Path,
    *,
    states: Mapping[str, AdapterState] | None = None,
    reads: Request | None = None,
    writes: Request | None = None,
) -> None:
    """Raise AssertionError with the first promise of `AdapterFormat` that is broken. Writes into `tmp_path` only.

    `states`: the adapters to try, by what is special about them; those of `format_states` if None, for which a format whose module names
    are not free can be given others. `reads` and `writes`: options and base with which the format reads and writes them.
    """
    case = _Case(format, tmp_path, states or format_states(), reads or Request(), writes or Request())
    case.check_class()
    case.check_foreign_files()
    if not format.writable:
        _refused(ConfigError, format.write, tmp_path / "x", [next(iter(case.states.values()))], case.writes)
        return
    kept = [state for title, state in case.states.items() if case.comes_back(title, state)]
    assert kept, "not one of the states could be written and read"
    case.check_several(kept[0])
    case.check_names(kept[0])
    case.check_little_is_read(kept[0])
    check_broken_writes(case, kept[0], kept[-1])
    check_broken_files(case, kept[-1])


@dataclass(frozen=True)
class _Case:
    """A format, and how it is tried."""

    format: AdapterFormat
    folder: Path
    states: Mapping[str, AdapterState]
    reads: Request
    writes: Request

    @property
    def path(self) -> Path:
        """Where it writes."""
        return self.folder / f"contract{'' if self.format.folder or not self.format.suffixes else self.format.suffixes[0]}"

    def write(self, *states: AdapterState) -> None:
        """Write states as `save_adapter` does."""
        fitting, _ = fit(self.format, list(states), self.writes)
        self.format.write(self.path, fitting, self.writes)

    def clear(self) -> None:
        """Remove a folder: it may keep the adapters of other names that are in it."""
        if self.path.is_dir():
            shutil.rmtree(self.path)

    def refusal(self, state: AdapterState) -> LoratkError | None:
        """Write a state; the error that refuses it, or None."""
        try:
            self.write(state)
        except LoratkError as error:
            return error
        return None

    def read(self, path: Path | None = None, adapters: Sequence[str] | None = None) -> list[AdapterState]:
        """Read states, and check that they are what states must be."""
        states = self.format.read(path or self.path, replace(self.reads, adapters=adapters)).states
        if wrong := list(state_faults(states)):
            raise FormatError(f"read() gave a state that is not sound: {'; '.join(wrong)}")
        return states

    def check_class(self) -> None:
        """Names, suffixes, and an answer for each feature."""
        format = self.format
        assert isinstance(format.name, str), "a format needs a name"
        assert format.name, "a format needs a name"
        assert format.title, "a format needs a title"
        assert isinstance(format.suffixes, tuple), "suffixes must be a tuple of strings"
        assert all("." in end for end in format.suffixes), f"each suffix is the end of a file name from a dot on, found {format.suffixes}"
        assert set(format.carries) == set(FEATURES), f"carries must answer each of FEATURES: {set(format.carries) ^ set(FEATURES)}"
        assert all(isinstance(text, str) and text for text in format.carries.values()), "carries must say 'yes', 'no', or how"
        for name, option in format.options.items():
            assert isinstance(option, Option), f"option {name!r} must be an Option"
            assert option.help, f"option {name!r} needs a help text"
        _refused(ConfigError, check_options, format, {"no such option": 1})

    def check_foreign_files(self) -> None:
        """detect() of files that are not its own: None, and no error but StoreError."""
        place, folder = self.folder / f"foreign{self.path.suffix}", self.folder / "foreign folder"
        for content in FOREIGN:
            place.write_bytes(content)
            assert self.format.detect(place) is None, f"detect() must be None for {content[:20]!r}"
        for content in HEADS:
            place.write_bytes(content)
            self.format.detect(place)  # any error is a bug
        folder.mkdir()
        assert self.format.detect(folder) is None, "detect() must be None for an empty folder"
        for content in CONFIGS:
            (folder / "adapter_config.json").write_bytes(content)
            assert self.format.detect(folder) is None, f"detect() must be None for a folder with the adapter_config.json {content[:20]!r}"
        for store in register_stores():
            if store.name != self.format.name:
                StoreFormat(store).write(place, [format_states()["a linear layer"]], Request())
                assert self.format.detect(place) is None, f"detect() must be None for an adapter in loratk's own layout ({store.name})"
            store.write(place, {"layers.0.weight": np.zeros((4, 4), np.float32), "layers.0.bias": np.zeros(4, np.float32)}, {})
            assert self.format.detect(place) is None, f"detect() must be None for weights in {store.name}"
        with suppress(StoreError):
            assert self.format.detect(self.folder / "nowhere") is None

    def comes_back(self, title: str, state: AdapterState) -> bool:
        """Write a state and read it again: the same, or refused where `carries` does not say "yes". Whether it was written."""
        needed, carries = needs([state]), self.format.carries
        exact = all(carries[feature] == "yes" for feature in needed if feature not in (*DROPPED, "bfloat16")) and title not in HARD
        old = files_of(self.path)
        if (error := self.refusal(state)) is not None:
            assert isinstance(error, ConfigError), f"{title}: what cannot be written must be refused with a ConfigError, not {error!r}"
            assert files_of(self.path) == old, f"{title}: a refused write must leave the old file as it was"
            assert not exact, f"{title}: carries says yes to {sorted(needed)}, but write() refuses: {error}"
            return False
        elsewhere = self.path.rename(self.folder / "another name")
        evidence = self.format.detect(elsewhere)
        elsewhere.rename(self.path)
        assert isinstance(evidence, str), f"{title}: detect() must tell by what it recognises what write() wrote, whatever its name"
        assert evidence, f"{title}: the evidence of detect() is empty"
        (got,) = self.read()
        assert self.format.adapters(self.path) == [got.name], f"{title}: adapters() must be the names that read() gives"
        assert_same_adapter(got, state, exact=exact, names=carries["names"] != "no", marks=carries["bfloat16"] == "yes")
        assert carries["fingerprint"] != "yes" or got.fingerprint == state.fingerprint, f"{title}: the fingerprint is lost"
        assert carries["metadata"] != "yes" or state.metadata.items() <= got.metadata.items(), f"{title}: metadata is lost"
        return True

    def check_several(self, state: AdapterState) -> None:
        """Adapters by name, all and some, where the format has several."""
        both = [replace(state, name="first"), replace(state, name="second")]
        if self.format.carries["several"] == "no":
            _refused(ConfigError, self.write, *both)
            return
        self.clear()
        self.write(*both)
        assert sorted(self.format.adapters(self.path)) == ["first", "second"], "adapters() must list every adapter"
        assert sorted(got.name for got in self.read()) == ["first", "second"], "read() must give every adapter"
        (got,) = self.read(adapters=["second"])
        assert got.name == "second", "read() must give the adapters that are asked for alone"
        assert self.read(adapters=[]) == [], "read() of no adapter must give none"
        self.clear()

    def check_names(self, state: AdapterState) -> None:
        """Odd names of modules come back or are refused, and lead to no other file."""
        (module, *rest) = state.modules
        for name in ODD_NAMES if not rest else ():
            before = sorted(self.folder.rglob("*"))
            (odd,) = [replace(state, modules={name: state.modules[module]}, tensors=_renamed(state, module, name))]
            try:
                self.write(odd)
                (got,) = self.read()
            except LoratkError:
                continue
            assert self.format.carries["names"] != "yes" or list(got.modules) == [name], f"module {name!r} came back as {list(got.modules)}"
            outside = [entry for entry in set(self.folder.rglob("*")) - set(before) if self.path not in (entry, *entry.parents)]
            assert not outside, f"module {name!r} made write() leave {outside}"

    def check_little_is_read(self, state: AdapterState) -> None:
        """detect() and adapters() do not load the tensors."""
        record, held = dict(next(iter(state.modules.values()))), next(iter(state.parameters().values()))
        if record["layer_type"] != "linear" or len(state.modules) > 1:
            return
        d, k, rank = (64 * size for size in (*record["shape"], record["rank"]))
        record |= {"shape": [d, k], "rank": rank, "alpha": 64 * record["alpha"]}
        big = {"lora_A": np.ones((d, rank), held["lora_A"].dtype), "lora_B": np.ones((rank, k), held["lora_B"].dtype)}
        module = next(iter(state.modules))
        large = replace(state, modules={module: record}, tensors={f"{module}.{key}": array for key, array in big.items()})
        try:
            self.write(large)
        except ConfigError:
            return  # a size that its base does not have
        size, limit = sum(map(len, files_of(self.path).values())), sum(array.nbytes for array in big.values()) // 4
        for call in (self.format.detect, self.format.adapters):
            tracemalloc.start()
            call(self.path)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < limit, f"{call.__name__}() took {peak} bytes of memory for a file of {size}; it must not load tensors"


def _renamed(state: AdapterState, module: str, name: str) -> dict[str, np.ndarray]:
    return {f"{name}.{key}" if name else key: array for key, array in state.parameters()[module].items()}


def _refused(kind: type[LoratkError], action, *arguments) -> None:  # type: ignore[no-untyped-def]
    try:
        action(*arguments)
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"{action.__qualname__} must raise {kind.__name__}, not {type(error).__name__}: {error}") from error
    raise AssertionError(f"{action.__qualname__} must raise {kind.__name__} for {arguments!r:.200}")
