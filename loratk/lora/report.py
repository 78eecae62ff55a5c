"""Counts and reports: what an adapter costs beside what it stands on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .config import LoraConfig
from .layer_types import LayerType

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from .model import LoraModel


@dataclass(frozen=True)
class Efficiency:
    """A LoRA adapter of one rank on one (d, k) weight: numbers trained, share not trained, ratio to the weight."""

    rank: int
    parameters: int
    reduction: float
    ratio: float


def efficiency(d: int, k: int, ranks: Sequence[int] = (4, 8, 16, 32, 64)) -> list[Efficiency]:
    """What LoRA adapters of several ranks cost on a (d, k) weight. Raises ConfigError for a rank above min(d, k)."""
    rows = []
    for rank in ranks:
        config = LoraConfig.default(rank)
        config.validate(d, k)
        rows.append(Efficiency(rank, rank * (d + k), config.reduction(d, k), rank * (d + k) / (d * k)))
    return rows


@dataclass(frozen=True)
class LayerSummary:
    """One adapter on one layer or column block."""

    name: str
    layer_type: str
    shape: tuple[int, int]
    adapter: str
    method: str
    rank: int
    scaling: float
    parameters: int


@dataclass(frozen=True)
class Summary:
    """A model's adapters and counts. `print` shows plain text, rich a table.

    base: numbers in the base's parameters. adapters: numbers in all adapters. trainable: numbers that train now (the
    active adapters', and the base's if it is not frozen). reduction: 1 - trainable / base, the share of what full
    fine-tuning would train that does not train; negative where an adapter is larger than its base. bytes_saved: what
    storing the trained numbers takes less than storing the base again.
    """

    layers: tuple[LayerSummary, ...]
    base: int
    adapters: int
    trainable: int
    reduction: float
    bytes_saved: int
    active: dict[str, float]
    merged: dict[str, float]

    def lines(self) -> list[str]:
        """The counts, a line each."""
        state = f"merged: {self.merged}" if self.merged else f"active: {self.active or 'none'}"
        return [
            f"base {self.base:,} parameters, adapters {self.adapters:,}, trainable {self.trainable:,}",
            f"reduction {self.reduction:.2%} (1 - trainable / base), {self.bytes_saved:,} bytes saved",
            state,
        ]

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (s.name, s.layer_type, f"{s.shape[0]} x {s.shape[1]}", s.adapter, s.method, str(s.rank), f"{s.scaling:g}", f"{s.parameters:,}")
            for s in self.layers
        ]

    def __str__(self) -> str:
        head = ("layer", "type", "shape", "adapter", "method", "rank", "scaling", "parameters")
        rows = [head, *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*table, *self.lines()])

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.table import Table

        table = Table(title="Adapters", title_justify="left")
        for column in ("layer", "type", "shape", "adapter", "method"):
            table.add_column(column)
        for column in ("rank", "scaling", "parameters"):
            table.add_column(column, justify="right")
        for row in self._rows():
            table.add_row(*row)
        yield table
        yield from self.lines()


def summarize(model: "LoraModel") -> Summary:
    """The summary of a model as it is now."""
    rows, seen = [], set[int]()
    for name, layer in model.layers.items():
        kind: LayerType[Any] | None = layer.layer_type
        for adapter in layer.names():
            held = layer.adapter(adapter)
            for block, part in held.blocks().items():
                whole = ".".join(p for p in (name, block) if p)
                shape = (part.d, part.k)
                count = 0 if id(part) in seen else part.count()  # layers may share one
                seen.add(id(part))
                where = whole, kind.name if kind else "", shape
                rows.append(LayerSummary(*where, adapter, part.method.name, part.rank, part.scaling, count))
            if held.bias is not None:
                size = held.bias.size
                rows.append(LayerSummary(f"{name}.bias", kind.name if kind else "", (1, size), adapter, "bias", 0, 1.0, size))
    base = model.base_parameters().values()
    count, size = sum(p.size for p in base), sum(p.size * p.dtype.itemsize for p in base)
    trained = model.trainable()
    trainable, trained_size = sum(p.size for p in trained), sum(p.size * p.dtype.itemsize for p in trained)
    adapters = sum(row.parameters for row in rows)
    reduction = 1 - trainable / count if count else 0.0
    return Summary(tuple(rows), count, adapters, trainable, reduction, size - trained_size, model.active, model.merged)
