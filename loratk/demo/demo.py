"""The demonstration itself, step by step; whoever runs it prints."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..autograd import no_grad
from ..errors import StoreError
from ..io import find_store
from ..lora import LoraConfig, LoraModel
from ..nn import MLP, AdamW, CrossEntropyLoss, Module, cosine
from ..plugins import Registry, default_registry
from ..train import History, Trainer, accuracy
from .tasks import Pair, make_tasks

if TYPE_CHECKING:
    from rich.console import Console

SIZES = (64, 512, 256, 10)
EPOCHS, BATCH = 20, 64
BASE_RATE, ADAPTER_RATE = 3e-3, 2e-2
ROUNDING = 1e-5  # of the largest logit; sums of up to 512 float32 products, taken in another order


@dataclass(frozen=True)
class Row:
    """Held-out accuracies on one task; those with an adapter are None on the task that needs none."""

    task: str
    base: float
    off: float
    on: float | None
    merged: float | None


@dataclass(frozen=True)
class Proof:
    """Something promised, whether it held, and what was seen."""

    claim: str
    holds: bool
    seen: str


class Demo:
    """A classifier on its own task, and one adapter for each changed task. Call the methods in their order.

    Everything follows from the seed. Raises ConfigError for a rank that does not fit the layers.
    """

    def __init__(
        self, *, rank: int = 4, seed: int = 0, backend: str = "cpu", registry: Registry | None = None, progress: "bool | Console" = False
    ) -> None:
        self.config = LoraConfig(rank=rank, alpha=2 * rank, seed=seed)
        for d, k in pairwise(SIZES):
            self.config.validate(d, k)
        self.registry = registry or default_registry()
        self.seed, self.backend, self.progress = seed, backend, progress
        self.own, *self.changed = make_tasks(seed)
        self.histories: dict[str, History] = {}
        self._base = self._network()

    def _network(self) -> MLP:
        return MLP(SIZES, rng=self.seed).to(self.backend)

    # Training

    def train_base(self) -> float:
        """Train the base on its own task, freeze it, and return its held-out accuracy there."""
        self._fit(self.own.name, self._base, self.own.train, self.own.held_out, BASE_RATE)
        self._base.freeze().eval()
        self._weights = self._base.state_dict()
        self._logits = {task.name: logits(self._base, task.held_out[0]) for task in (self.own, *self.changed)}
        self.model = LoraModel(self._base, registry=self.registry).eval()
        return self.base_accuracy(self.own.name)

    def base_accuracy(self, name: str) -> float:
        """The base's held-out accuracy on a task, before there was any adapter."""
        return score(self._logits[name], self._held_out(name)[1])

    def train_adapter(self, name: str) -> float:
        """Train an adapter on the changed task of that name, nothing else, and return its held-out accuracy there."""
        task = next(task for task in self.changed if task.name == name)
        self.model.add_adapter(name, self.config)
        self.model.set_active(name)
        self._fit(name, self.model, task.train, task.held_out, ADAPTER_RATE)
        return self._score(name)

    def _fit(self, name: str, model: Module, train: Pair, held_out: Pair, rate: float) -> None:
        steps = EPOCHS * -(-len(train[0]) // BATCH)
        optimizer = AdamW(model.trainable(), lr=rate, weight_decay=0.0, schedule=cosine(steps))
        trainer = Trainer(model, optimizer, CrossEntropyLoss(), metrics=[accuracy], seed=self.seed, progress=self.progress)
        self.histories[name] = trainer.fit(train, epochs=EPOCHS, batch_size=BATCH, validation=held_out)

    # Counting and comparing

    def counts(self) -> tuple[int, int]:
        """Numbers in the base, and in one adapter."""
        name = self.changed[0].name
        return sum(p.size for p in self.model.base_parameters().values()), sum(a.size for a in self.model.state(name).values())

    def accuracies(self) -> list[Row]:
        """Held-out accuracies of the base, and with the adapter of a task switched off, on, and merged into the weights."""
        with self.model.disabled():
            rows = [Row(self.own.name, self.base_accuracy(self.own.name), self._score(self.own.name), None, None)]
        for name in (task.name for task in self.changed):
            self.model.set_active(name)
            with self.model.disabled():
                off = self._score(name)
            on = self._score(name)
            self.model.merge()
            rows.append(Row(name, self.base_accuracy(name), off, on, self._score(name)))
            self.model.unmerge()
        return rows

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write the base's weights and, into one file, all adapters; return the two paths."""
        make_folder(folder)
        base, adapters = folder / "base.h5", folder / "adapters.h5"
        find_store(base, self.registry.stores, for_writing=True).write(base, self._weights, {})
        self.model.save(adapters, metadata={"data": "UCI handwritten digits, DOI 10.24432/C50P49"})
        return base, adapters

    def prove(self, base: Path, adapters: Path) -> list[Proof]:
        """Check what adapters promise, on all held-out images, against the files that `save` wrote."""
        return [self._prove_off(), self._prove_merged(), self._prove_reloaded(base, adapters), self._prove_unchanged()]

    def _prove_off(self) -> Proof:
        with self.model.disabled():
            different = sum(_different(self._run(name), before) for name, before in self._logits.items())
        total = sum(before.size for before in self._logits.values())
        return Proof("adapter off = base, bit for bit", not different, f"{different:,} of {total:,} outputs differ")

    def _prove_merged(self) -> Proof:
        gaps, tops = [], []
        for task in self.changed:
            self.model.set_active(task.name)
            adapted = self._run(task.name)
            self.model.merge()
            gaps.append(float(np.abs(self._run(task.name) - adapted).max()))
            tops.append(float(np.abs(adapted).max()))
            self.model.unmerge()
        holds = all(gap <= ROUNDING * top for gap, top in zip(gaps, tops, strict=True))
        return Proof("merged = adapted, to rounding", holds, f"largest difference {max(gaps):.1e} in outputs up to {max(tops):.1f}")

    def _prove_reloaded(self, base: Path, adapters: Path) -> Proof:
        network = MLP(SIZES, rng=self.seed + 1)  # other weights, so that all must come from the file
        network.load_state_dict(find_store(base, self.registry.stores).read(base).arrays)
        again = LoraModel(network.to(self.backend), registry=self.registry).eval()
        again.load(adapters)
        different = 0
        for task in self.changed:
            for model in (self.model, again):
                model.set_active(task.name)
            different += _different(logits(again, task.held_out[0]), self._run(task.name))
        total = sum(self._logits[task.name].size for task in self.changed)
        return Proof("saved and reloaded = in memory, bit for bit", not different, f"{different:,} of {total:,} outputs differ")

    def _prove_unchanged(self) -> Proof:
        now = self.model.base_state()
        different = sum(_different(now[name], before) for name, before in self._weights.items())
        total = sum(before.size for before in self._weights.values())
        return Proof("base weights untouched after it all, bit for bit", not different, f"{different:,} of {total:,} weights differ")

    def _held_out(self, name: str) -> Pair:
        return next(task.held_out for task in (self.own, *self.changed) if task.name == name)

    def _run(self, name: str) -> np.ndarray:
        return logits(self.model, self._held_out(name)[0])

    def _score(self, name: str) -> float:
        return score(self._run(name), self._held_out(name)[1])


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {str(folder)!r}: {error.strerror or error}; choose another.") from error


def logits(model: Module, x: np.ndarray) -> np.ndarray:
    """What a model makes of images: (n, 64) -> (n, 10)."""
    with no_grad():
        return np.array(model(x).numpy())


def score(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows (n, 10) whose largest output is at the label (n,)."""
    right, count = accuracy(outputs, labels)
    return right / count


def _different(a: np.ndarray, b: np.ndarray) -> int:
    """How many entries differ in any bit."""
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return int(np.count_nonzero(np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)))
