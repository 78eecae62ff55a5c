"""Several adapters trained together on one base: batches with rows of several tasks, a loss and measures for each.

A task is an adapter: the one that the model has under the task's name. Rows of all tasks go through the base in one pass, whose products
they share, and each task's adapter gets the gradient that its own rows would give it alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad, ops
from ..errors import ConfigError, ShapeError, UnknownNameError, choices, faults
from ..lora import LoraModel, PerRow
from ..nn import Module, Parameter
from .data import Batch, check_arrays, check_count
from .evaluation import Loss
from .metrics import Metric, Sums, as_metrics


class TaskRows:
    """An array of inputs and the task of each row."""

    def __init__(self, x: Any, tasks: Sequence[str]) -> None:
        if len(x) != len(tasks):
            raise ShapeError(f"Each row needs a task, found {len(x)} rows and {len(tasks)} tasks.")
        self.x, self.tasks = x, tuple(tasks)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the inputs."""
        return tuple(self.x.shape)


class TaskTargets:
    """The targets of a batch by task, maybe none, each with the rows it is for: tasks may have targets of different kinds."""

    def __init__(self, targets: Mapping[str, Any], rows: Mapping[str, np.ndarray]) -> None:
        self.targets, self.rows = dict(targets), dict(rows)

    @property
    def shape(self) -> tuple[int]:
        """(rows,)."""
        return (sum(len(rows) for rows in self.rows.values()),)


class MixedBatches:
    """Batches of rows of several tasks, as `Trainer.fit` takes them: `(TaskRows, TaskTargets)`.

    `data` maps tasks to arrays (x, y); all x have rows of one shape. Without `weights` an epoch has every row of every task once, in an
    order that is new each epoch. With them each row is of a task drawn by weight, and takes that task's rows in turn, shuffled, again and
    again; an epoch then has `rows` rows (by default as many as there are in all). The order of an epoch follows from seed and epoch alone.
    """

    def __init__(
        self,
        data: Mapping[str, tuple[Any, Any]],
        *,
        batch_size: int = 32,
        weights: Mapping[str, float] | None = None,
        rows: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.data = {task: check_arrays(pair, f"the data of task {task!r}") for task, pair in data.items()}
        if not self.data:
            raise ConfigError("There is no task: map the names of adapters to their data (x, y).")
        if found := list(self._faults(weights, rows, shuffle)):
            raise ConfigError(faults("These tasks cannot be mixed:", found))
        self.tasks = list(self.data)
        self.batch_size, self.seed, self.shuffle = check_count("batch_size", batch_size), check_count("seed", seed, 0), shuffle
        self.weights = None if weights is None else {task: float(weights[task]) for task in self.tasks}
        total = sum(len(x) for x, _ in self.data.values())
        self.rows = total if rows is None else check_count("rows", rows)
        self.length: int | None = -(-self.rows // self.batch_size)
        sizes = {task: f"{x.dtype}{list(x.shape)} {y.dtype}{list(y.shape)}" for task, (x, y) in self.data.items()}
        self.settings = {"tasks": sizes, "batch_size": self.batch_size, "weights": self.weights, "rows": self.rows, "seed": self.seed}
        self.settings |= {"shuffle": shuffle}

    def _faults(self, weights: Mapping[str, float] | None, rows: int | None, shuffle: bool) -> Iterator[str]:
        shapes = {(x.shape[1:], str(x.dtype)) for x, _ in self.data.values()}
        if len(shapes) > 1:
            told = ", ".join(f"{task!r} {x.dtype}{list(x.shape[1:])}" for task, (x, _) in self.data.items())
            yield f"the rows of all x must be of one shape and dtype, found {told}"
        if weights is None:
            if rows is not None:
                yield "rows= goes with weights=: without, an epoch has every row once"
            return
        if not shuffle:
            yield "weights= draw rows, so shuffle=False cannot be"
        if missing := self.data.keys() ^ weights.keys():
            yield f"weights must name each task once, and none else: {choices(sorted(missing))} is in one of the two only"
        for task, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
                yield f"the weight of task {task!r} must be a positive number, found {weight!r}"

    def __len__(self) -> int:
        return self.length or 0

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch (0, 1, ...)."""
        return self.batches(epoch)

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch in their order, without the first `skip`."""
        order = self._order(epoch)
        for start in range(skip * self.batch_size, len(order), self.batch_size):
            yield self._batch(order[start : start + self.batch_size])

    def _order(self, epoch: int) -> np.ndarray:
        """(task, row) of each row of an epoch: (rows, 2)."""
        rng, sizes = np.random.default_rng([self.seed, epoch]), [len(x) for x, _ in self.data.values()]
        if self.weights is None:
            order = np.concatenate([np.stack([np.full(size, at), np.arange(size)], axis=1) for at, size in enumerate(sizes)])
            return order[rng.permutation(len(order))] if self.shuffle else order
        shares = np.array(list(self.weights.values()))
        tasks = rng.choice(len(sizes), self.rows, p=shares / shares.sum())
        rows = np.empty(self.rows, np.int64)
        for at, size in enumerate(sizes):
            mine = np.flatnonzero(tasks == at)
            rounds = [rng.permutation(size) for _ in range(-(-len(mine) // size))]
            rows[mine] = np.concatenate([*rounds, np.empty(0, np.int64)])[: len(mine)]
        return np.stack([tasks, rows], axis=1)

    def _batch(self, order: np.ndarray) -> Batch:
        names = [self.tasks[at] for at in order[:, 0]]
        x = np.stack([self.data[name][0][row] for name, row in zip(names, order[:, 1], strict=True)])
        rows = {task: np.flatnonzero(order[:, 0] == at) for at, task in enumerate(self.tasks)}
        return TaskRows(x, names), TaskTargets({task: self.data[task][1][order[found, 1]] for task, found in rows.items()}, rows)


class MultiTask(Module):
    """A model whose adapters are tasks, for a Trainer: `Trainer(tasks, optimizer, tasks.loss).fit(MixedBatches(...), epochs=...)`.

    `losses` maps tasks, each an adapter of the model, to `loss(outputs, targets)`, the mean over the rows of that task; `weights` says how
    much each counts (1 otherwise). Makes the tasks' adapters active, so that they train. Outputs are those of all rows, in their order.
    """

    def __init__(self, model: LoraModel, losses: Mapping[str, Loss], *, weights: Mapping[str, float] | None = None) -> None:
        if not losses:
            raise ConfigError("There is no task: map the names of adapters to their losses.")
        for task in (*losses, *(weights or {})):
            if task not in model.adapters:
                raise UnknownNameError(f"Task {task!r} is no adapter of the model. Adapters: {choices(model.adapters)}.")
        if unknown := [task for task in weights or {} if task not in losses]:
            raise ConfigError(f"There are weights for {choices(unknown)}, which have no loss. Tasks: {choices(losses)}.")
        self.model = model
        self.losses, self.weights = dict(losses), {task: float((weights or {}).get(task, 1.0)) for task in losses}
        model.set_active(list(losses))

    def forward(self, rows: Any) -> Any:
        """TaskRows -> the outputs of all rows, each by its own task's adapter."""
        if not isinstance(rows, TaskRows):
            raise ShapeError(
                f"MultiTask takes TaskRows, inputs with the task of each row, found a {type(rows).__name__}; see MixedBatches."
            )
        for task in dict.fromkeys(rows.tasks):
            if task not in self.losses:
                raise UnknownNameError(f"There is no task {task!r}. Tasks: {choices(self.losses)}.")
        return self.model(rows.x, adapter=PerRow(rows.tasks))

    def loss(self, outputs: Tensor, targets: TaskTargets) -> Tensor:
        """The sum over the tasks that have rows in the batch of weight times their loss."""
        total: Tensor | None = None
        for task, of in targets.targets.items():
            if not len(targets.rows[task]):
                continue
            value = self.losses[task](_rows(outputs, targets.rows[task]), of)
            value = value if self.weights[task] == 1.0 else value * self.weights[task]
            total = value if total is None else total + value
        assert total is not None
        return total

    def metrics(self, metrics: Mapping[str, Iterable[Sums | Metric]] | None = None) -> list[Metric]:
        """For a Trainer: each task's loss, and its measures from a mapping of tasks to metrics, under `<task> <name>`."""
        found = [Metric(f"{task} loss", _loss_of(task, self.losses[task])) for task in self.losses]
        for task, of in (metrics or {}).items():
            if task not in self.losses:
                raise UnknownNameError(f"There are metrics for {task!r}, which is no task. Tasks: {choices(self.losses)}.")
            found += [Metric(f"{task} {metric.name}", _sums_of(task, metric), metric.value) for metric in as_metrics(of)]
        return found

    def groups(self, options: Mapping[str, Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
        """Groups for an optimiser: the parameters of each task's adapter, with options of their own, such as {"a": {"lr": 1e-3}}."""
        for task in options or {}:
            if task not in self.losses:
                raise UnknownNameError(f"There are options for {task!r}, which is no task. Tasks: {choices(self.losses)}.")
        layers = list(self.model.layers.values())
        held = {task: [layer.adapter(task) for layer in layers if task in layer.names()] for task in self.losses}
        mine = {task: [p for each in parts for p in each.parameters() if p.requires_grad] for task, parts in held.items()}
        return [{"params": parameters, **(options or {}).get(task, {})} for task, parameters in mine.items() if parameters]

    def trainable(self) -> list[Parameter]:
        """The parameters of the tasks' adapters, and those of the base if it is not frozen."""
        return self.model.trainable()


def _rows(outputs: Tensor, rows: np.ndarray) -> Tensor:
    if len(rows) == outputs.shape[0]:
        return outputs
    size = int(np.prod(outputs.shape[1:]))
    return ops.gather_rows(outputs.reshape(outputs.shape[0], size), rows).reshape(len(rows), *outputs.shape[1:])


def _sums_of(task: str, metric: Metric) -> Callable[[Any, TaskTargets], Sequence[float]]:
    """The sums of a metric over the rows of a task; of arrays without rows where a batch has none."""
    return lambda outputs, targets: metric.sums(outputs[targets.rows[task]], targets.targets[task])


def _loss_of(task: str, loss: Loss) -> Callable[[Any, TaskTargets], Sequence[float]]:
    def sums(outputs: Any, targets: TaskTargets) -> Sequence[float]:
        rows = targets.rows[task]
        if not len(rows):
            return 0.0, 0.0
        with no_grad():
            return loss(Tensor(outputs[rows]), targets.targets[task]).item() * len(rows), len(rows)

    return sums
