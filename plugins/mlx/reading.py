"""The tensors of an mlx-lm adapter as a state, held against its config."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loratk.exchange import AdapterState, Request
from loratk.exchange.base import EMBEDDINGS
from loratk.exchange.tensors import TensorFile, marks, name_faults
from loratk.io.text import to_text

from .blocks import Chosen, spellings
from .config import NAME as CONFIG
from .config import MlxConfig

FACTORS = {"lora_a": "lora_A", "lora_b": "lora_B", "m": "magnitude"}
"""The last part of a tensor's name, and the parameter that it is here."""


@dataclass
class Adapter:
    """One adapter on its way from a file. `found` are faults of the file, `asked` what loratk cannot hold of it."""

    config: MlxConfig
    file: TensorFile
    request: Request
    tables: Collection[str]
    bare: bool = False
    found: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    modules: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = field(default_factory=dict)

    def read(self) -> AdapterState:
        """The state; without a sense if faults were found."""
        self.found += name_faults(self.file.arrays)
        if self.config.fine_tune_type == "full":
            self._read_whole()
        else:
            self._read_factors()
        if not self.modules and not self.found and not self.asked:
            self.found.append("it holds no tensors of an adapter")
        tensors = {f"{module}.{key}": array for module, (_, held) in self.modules.items() for key, array in held.items()}
        records = {module: record for module, (record, _) in self.modules.items()}
        metadata = {key: text for key, text in self.file.metadata.items() if key != "format"}
        metadata |= {f"mlx.{key}": to_text(value) for key, value in sorted(self.config.rest.items()) if value is not None}
        return AdapterState("default", {}, tensors, records, metadata=metadata)

    def _read_factors(self) -> None:
        groups: dict[str, dict[str, str]] = {}
        for name in self.file.arrays:
            module, _, last = name.rpartition(".")
            if last not in FACTORS or not module:
                self.found.append(f"unexpected tensor {name!r}: an adapter of mlx-lm has .lora_a and .lora_b, and with DoRA .m")
            elif last == "m" and self.config.fine_tune_type != "dora":
                self.found.append(f"unexpected tensor {name!r}: magnitudes belong to fine_tune_type 'dora', found 'lora'")
            else:
                groups.setdefault(module, {})[last] = name
        wanted = ["lora_a", "lora_b"] + (["m"] if self.config.fine_tune_type == "dora" else [])
        for module, names in list(groups.items()):
            lacks = [f"{module}.{last}" for last in wanted if last not in names]
            if lacks and self.request.may_miss(*lacks):
                self.notes.append(f"module {module!r} left out: {', '.join(map(repr, lacks))} is missing, as allowed")
                continue
            self.found += [f"tensor {name!r} is missing, though {', '.join(map(repr, names.values()))} is there" for name in lacks]
            if not lacks:
                self._read_module(module, names)
        if not self.bare:
            self._check_choice(set(groups))

    def _read_module(self, module: str, names: dict[str, str]) -> None:
        a, b = (self.file.arrays[names[last]] for last in ("lora_a", "lora_b"))
        where = f"module {module!r}"
        stack = a.ndim == 3
        if a.ndim != b.ndim or a.ndim not in (2, 3) or not a.size or not b.size:
            self.found.append(f"{where} must have factors of 2 axes, or of 3 for experts, found {a.shape} and {b.shape}")
            return
        if a.dtype.kind != "f" or b.dtype.kind != "f":
            self.found.append(f"{where} must have factors of floating-point numbers, found {a.dtype} and {b.dtype}")
            return
        lora_a, lora_b = (np.ascontiguousarray(factor.swapaxes(1, 2)) for factor in (a, b)) if stack else (a, b)
        (d, rank), k = lora_a.shape[-2:], lora_b.shape[-1]
        if lora_b.shape[-2] != rank or lora_a.shape[:-2] != lora_b.shape[:-2]:
            self.found.append(f"{where} has factors that do not fit each other: lora_a {a.shape}, lora_b {b.shape}")
            return
        if self.config.rank not in (None, rank):
            self.found.append(
                f"{where} has factors of rank {rank}: lora_a {a.shape}, lora_b {b.shape}; {CONFIG} promises {self.config.rank}"
            )
        table = not stack and module.rpartition(".")[2] in self.tables
        held = {"lora_A": lora_a, "lora_B": lora_b}
        if "m" in names:
            held["magnitude"] = self.file.arrays[names["m"]]
            self._check_magnitude(where, held["magnitude"], d, k, table=table, stack=stack)
        record = {"method": "dora" if "m" in names else "lora", "layer_type": "embedding" if table else "linear", "shape": [d, k],
                  "rank": rank, **_scale(self.config.scale, rank, self.bare), **({"experts": len(a)} if stack else {})}  # fmt: skip
        self.modules[module] = record | marks(self.file, {FACTORS[last]: name for last, name in names.items()}), held

    def _check_magnitude(self, where: str, magnitude: np.ndarray, d: int, k: int, *, table: bool, stack: bool) -> None:
        if stack:
            self.found.append(f"{where} is a stack of experts with magnitudes, which mlx-lm does not have")
        elif magnitude.shape == (d,) and (table or d != k):
            self.asked.append(f"{where} is an embedding under DoRA, with a magnitude for each row; loratk knows one for each column")
        elif magnitude.shape != (k,) or magnitude.dtype.kind != "f":
            self.found.append(f"{where} must have {k} magnitudes, found {magnitude.dtype} {magnitude.shape}")

    def _check_choice(self, modules: set[str]) -> None:
        """Modules against keys and num_layers; with the base also that every module they mean has its tensors."""
        base = [] if self.request.base is None else self.request.base.modules()
        chosen = Chosen.among(self.config, [*base, *modules])
        self.found += chosen.faults(modules, self._may_miss)
        lost = [module for module in base if module not in modules and self._means(chosen, module) and not self._may_miss(module)]
        self.found += [f"tensors of module {module!r} are missing: keys and num_layers mean it, and the base has it" for module in lost]
        if not base and self.config.keys is not None:
            for path, numbers in sorted(chosen.holes(modules).items()):
                blocks = f"{', '.join(map(str, numbers[:6]))}{' and more' if len(numbers) > 6 else ''}"
                self.notes.append(f"{path!r} has no tensors for N = {blocks}: fine if the base has no such layer there, else they are lost")

    def _may_miss(self, key: str) -> bool:
        """Whether a module may have no adapter, or those that a key means: because one of its tensors is named."""
        allowed = [name for name in self.request.allow_missing if key in spellings(name.rpartition(".")[0])]
        return bool(allowed) and self.request.may_miss(*allowed)

    def _means(self, chosen: Chosen, module: str) -> bool:
        """Whether the config means a module of the base; without keys only a matrix can be meant."""
        assert self.request.base is not None
        return chosen.why_not(module) is None and (self.config.keys is not None or len(self.request.base.shape(module)) == 2)

    def _read_whole(self) -> None:
        for name, array in self.file.arrays.items():
            module, _, parameter = name.rpartition(".")
            if not module:
                self.found.append(f"tensor {name!r} belongs to no module")
            elif array.ndim > 2:
                self.asked.append(
                    f"tensor {name!r} has {array.ndim} axes, which mlx orders otherwise than torch; loratk holds whole matrices"
                )
            else:
                record, held = self.modules.setdefault(module, ({"method": "full", "orientation": "torch"}, {}))
                held[parameter] = array
                if name in self.file.bfloat16:
                    record.setdefault("dtypes", {})[parameter] = "bfloat16"
        self.notes.append("fine_tune_type 'full': the tensors take the place of the base's own")


def _scale(scale: float, rank: int, bare: bool) -> dict[str, Any]:
    """mlx-lm applies its scale as it is. alpha is the shortest number that gives it by alpha / rank."""
    alpha = float(f"{scale * rank:.15g}")
    alpha = alpha if alpha / rank == scale else scale * rank
    source = "the option scale" if bare else f"scale of {CONFIG}"
    return {"alpha": alpha, "scaling": scale, "alpha_source": f"{source}, times the rank"}


def known_tables(more: Collection[str]) -> set[str]:
    """Last parts of the paths of look-up tables."""
    return {*EMBEDDINGS, *more}
