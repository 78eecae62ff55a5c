"""One module of a file as a record and its parameters: LoRA and LoCon as loratk's own, every other method as it is in the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loratk.errors import FormatError
from loratk.exchange.torch_layout import from_torch

from .shapes import Sizes, sizes
from .table import KEYS, SPARSE, Kind, kind_of

Record = dict[str, Any]
Parameters = dict[str, np.ndarray]


@dataclass(frozen=True)
class Header:
    """What the header says of all modules: ss_network_alpha and ss_network_dim, where they are numbers."""

    alpha: float | None = None
    dim: int | None = None


def header(metadata: Mapping[str, str]) -> Header:
    """The header's alpha and rank; text that is no number ("Dynamic", "None") says nothing."""
    try:
        alpha: float | None = float(metadata.get("ss_network_alpha", ""))
    except ValueError:
        alpha = None
    dim = metadata.get("ss_network_dim", "")
    usable = alpha is not None and math.isfinite(alpha)
    return Header(alpha if usable else None, int(dim) if dim.isascii() and dim.isdecimal() and len(dim) < 10 else None)


def read_module(name: str, held: Parameters, said: Header, found: list[str], notes: list[str]) -> tuple[Record, Parameters] | None:
    """Record and parameters of a module; what is wrong with it goes to `found`, what had to be decided to `notes`."""
    kind = kind_of(held)
    if kind is None:
        found.append(f"module {name!r} has {', '.join(repr(KEYS[key]) for key in sorted(held))}, which is no adapter")
        return None
    fit = sizes(kind.method, held)
    wrong = kind.faults(held) or fit.faults
    wrong += [f"{KEYS[key]!r} must be floating-point numbers, found {held[key].dtype}" for key in _numbers(held)]
    if not wrong:
        try:
            return _Module(name, kind, held, fit, said, notes).read()
        except FormatError as error:
            wrong = [str(error)]
    found += [f"module {name!r}: {line}" for line in wrong]
    return None


def _numbers(held: Parameters) -> list[str]:
    whole = {*SPARSE, "on_input", "alpha", "scalar"} - {"bias_values"}
    return [key for key, array in held.items() if key not in whole and array.dtype.kind != "f"]


class _Module:
    """A module whose tensors are those of its kind and fit each other."""

    def __init__(self, name: str, kind: Kind, held: Parameters, fit: Sizes, said: Header, notes: list[str]) -> None:
        self.name, self.kind, self.held, self.fit, self.said, self.notes = name, kind, held, fit, said, notes

    def read(self) -> tuple[Record, Parameters]:
        method, held = self.kind.method, self.held
        kept = {key: array for key, array in held.items() if key not in ("alpha", "scalar", "diff_b")}
        if method in ("diff", "ia3", "oft"):
            return self._unscaled(method, kept)
        rank = self._rank()
        record: Record = {"method": method, "layer_type": self._layer_type(), "shape": [self.fit.of["d"], self.fit.of["k"]], "rank": rank}
        if self.fit.window:
            record["kernel"] = list(self.fit.window)
        record |= self._scale(rank)
        beside = {"bias": held["diff_b"]} if "diff_b" in held else {}
        side = self._side()
        if method == "lora" and side != "in" and not any(key in held for key in ("lora_mid", *SPARSE)):
            facts, a, b = from_torch(held["lora_down"], held["lora_up"])
            factors = {"lora_A": a, "lora_B": b}
            if side == "out":
                record["method"] = "dora"
                factors["magnitude"] = held["dora_scale"].reshape(-1)
            return record | facts, factors | beside
        if method == "lora":
            record["method"] = method = "dora_in" if side == "in" else "locon"
        if side == "in":
            self.notes.append(
                f"{self.name!r} has a DoRA scale for each input, which only LyCORIS knows; its tensors are kept as {method!r}"
            )
        return record | {"orientation": "torch"}, kept | beside

    def _unscaled(self, method: str, kept: Parameters) -> tuple[Record, Parameters]:
        """A module that no rank and no scaling belongs to."""
        alpha = self._number("alpha") if "alpha" in self.held else None
        record: Record = {"method": method, "orientation": "torch"}
        if method == "oft":
            blocks = kept["oft_blocks"]
            if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
                raise FormatError(f"'oft_blocks' must have shape (blocks, b, b) or (steps, blocks, b, b), found {blocks.shape}")
            record["method"] = "oft" if blocks.ndim == 3 else "boft"
            return record | ({} if alpha is None else {"alpha": alpha, "alpha_source": "the file's alpha, a constraint"}), kept
        if method == "ia3":
            if kept["on_input"].size != 1:
                raise FormatError(f"'on_input' must be one number, found {kept['on_input'].shape}")
            return record, kept
        if alpha is not None:
            self.notes.append(f"{self.name!r} has an alpha of {alpha:g} beside a difference of weights, where it counts for nothing")
        both = {"diff", "w_norm"} <= kept.keys() or {"diff_b", "b_norm"} <= self.held.keys()
        if both:
            raise FormatError("it has a difference of weights ('diff') and one of a norm ('w_norm'), and can have one")
        new = {"weight": kept.get("diff", kept.get("w_norm")), "bias": self.held.get("diff_b", self.held.get("b_norm"))}
        held = {key: array for key, array in new.items() if array is not None}
        if (weight := held.get("weight")) is not None and weight.ndim > 1:
            record |= {"layer_type": _layer(weight.shape[2:]), "shape": [math.prod(weight.shape[1:]), weight.shape[0]]}
        return record, held

    def _rank(self) -> int:
        if "r" in self.fit.of:
            return self.fit.of["r"]
        alpha = self._number("alpha") if "alpha" in self.held else 1.0
        return int(alpha) if alpha >= 1 and alpha == int(alpha) else 1  # LoKr with two full factors: files have alpha = rank

    def _scale(self, rank: int) -> Record:
        """alpha, scaling, and where alpha came from (its tensor, the header, the rank)."""
        if self.kind.method == "lokr" and "r" not in self.fit.of:
            alpha, source = float(rank), "both factors of LoKr are full, which are not scaled"
        elif "alpha" in self.held:
            alpha, source = self._number("alpha"), "the file's alpha"
            if alpha == 0:
                alpha, source = float(rank), "the rank, which an alpha of 0 means"
        elif self.said.alpha and self.said.dim in (None, rank):
            alpha, source = self.said.alpha, "the header's ss_network_alpha, for there is no alpha"
        else:
            alpha, source = float(rank), "the rank, for there is no alpha"
        if "scalar" in self.held and (scalar := self._number("scalar")) != 1:
            alpha, source = alpha * scalar, f"{source}, times the scalar {scalar:g}"
        return {"alpha": alpha, "scaling": alpha / rank, "alpha_source": source}

    def _number(self, key: str) -> float:
        array = self.held[key]
        if array.size != 1 or array.ndim > 1 or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            shown = array.reshape(-1)[:2].tolist()
            raise FormatError(f"{key!r} must be one finite number, found {array.dtype} {array.shape}: {shown}")
        return float(array.reshape(-1)[0])

    def _side(self) -> str:
        """Whether dora_scale is one for each output ("out"), for each input ("in"), or not there ("")."""
        scale = self.held.get("dora_scale")
        if scale is None:
            return ""
        k, d = self.fit.of["k"], self.fit.of["d"]
        if scale.ndim and scale.shape[0] == k == scale.size:
            return "out"
        if scale.ndim > 1 and scale.shape[:2] == (1, scale.size) and d % scale.size == 0:  # LoKr may not tell the window
            return "in"
        raise FormatError(f"'dora_scale' must have shape ({k}, 1, ...), one for each output, or (1, inputs, ...), found {scale.shape}")

    def _layer_type(self) -> str:
        return _layer(self.fit.window)


def _layer(window: tuple[int, ...]) -> str:
    return f"conv{len(window)}d" if window else "linear"
