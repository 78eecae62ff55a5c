"""Arrays restored by the residuals of one merge after the other, the last one first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import FormatError, StateError, choices, faults
from ..exchange import Checkpoint
from ..io import NpzStore
from ..io.store import Reader
from ..kernels.reference.merge import Measures
from .items import Item
from .ledger import Ledger
from .residual import Residual, given_dtype, read_head, restored

Infos = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Chain:
    """The residuals of the last merges, the last one first, open, and how many merges of the ledger are left without them."""

    links: Sequence[tuple[Residual, Reader]]
    count: int

    @property
    def paths(self) -> list[Path]:
        """Their files."""
        return [residual.path for residual, _ in self.links]

    def items(self, infos: Infos) -> list[Item]:
        """What becomes of each array of the merged checkpoint. Raises FormatError for arrays of a residual that the checkpoint lacks."""
        for residual, _ in self.links:
            if unknown := (residual.names | residual.dtypes.keys()) - infos.keys():
                raise FormatError(f"the residual '{residual.path}' has arrays that the checkpoint lacks: {choices(unknown)}")
        return [self._item(name, dtype) for name, (dtype, _) in infos.items()]

    def _item(self, name: str, dtype: str) -> Item:
        steps, at = [], dtype
        for residual, reader in self.links:
            new = residual.dtypes.get(name, at)
            steps.append((reader if name in residual.names else None, at, new))
            at = new
        if all(reader is None and before == after for reader, before, after in steps):
            return Item(name, dtype)

        def make(stored: np.ndarray) -> tuple[np.ndarray, Measures | None]:
            for reader, before, after in steps:
                stored = given_dtype(stored, before, after)
                stored = stored if reader is None else restored(stored, reader.array(name))
            return stored, None

        return Item(name, at, make=make)


def open_chain(merged: Checkpoint, ledger: Ledger, paths: Sequence[Path], stack: ExitStack) -> Chain:
    """The residuals of the last merges of a ledger, given in any order.

    Raises StateError for one that is of none of its merges, or of one that others came after whose residuals are not given.
    """
    found: dict[int, tuple[Residual, Reader]] = {}
    wrong = []
    for path in paths:
        reader = stack.enter_context(NpzStore().open(path))
        residual = read_head(path, reader)
        places = [place for place, merge in enumerate(ledger.merges) if merge == residual.merge]
        if not places:
            wrong.append(
                f"'{path}' is of a merge of {choices(adapter.name for adapter in residual.merge.adapters)} that the ledger does not have"
            )
        elif places[0] in found:
            wrong.append(f"'{path}' and '{found[places[0]][0].path}' are of the same merge")
        else:
            found[places[0]] = residual, reader
    last = len(ledger.merges) - 1
    for place in range(min(found, default=last), last + 1):
        if place not in found:
            names = choices(adapter.name for adapter in ledger.merges[place].adapters)
            wrong.append(f"merge {place + 1} of {last + 1}, of {names}, has to be undone too, and its residual is not given")
    if wrong:
        raise StateError(faults(f"'{merged.path}' cannot be restored from these residuals:", wrong))
    return Chain([found[place] for place in sorted(found, reverse=True)], min(found))
