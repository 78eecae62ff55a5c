"""Training a way on the task, and what came of it."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from loratk import LoraConfig, LoraModel, Trainer, ops
from loratk.nn import AdamW, CrossEntropyLoss, cosine
from loratk.train import accuracy

from .task import BATCH, Shift, shift
from .ways import ALPHA, RANK, RATES, Way

EPOCHS = 15


@dataclass(frozen=True)
class Outcome:
    """What a way reached, a mean over seeds: accuracy in %, numbers that train, bytes of the file, loss by step; and the ms of a step."""

    label: str
    accuracy: float
    spread: float
    rate: float
    parameters: int
    size: int
    step: float
    losses: list[float]


def adapted(way: Way, task: Shift, seed: int) -> LoraModel:
    """The task's classifier with a new adapter."""
    config = LoraConfig(**{"rank": RANK, "alpha": ALPHA, "seed": seed} | dict(way.settings))
    x, y = task.train
    more: dict[str, Any] = {"inputs": {"data": [x]}, "gradients": {"data": [(x, y)], "loss": CrossEntropyLoss()}}.get(way.needs, {})
    return LoraModel.adapt(task.base(), config, **more)


def optimizer(way: Way, model: LoraModel, rate: float, steps: int) -> AdamW:
    """AdamW without decay, with a cosine schedule."""
    parameters: Any = model.trainable()
    if way.recipe:
        from loratk.lora import recipes

        parameters = getattr(recipes, way.recipe)(model, rate)
    return AdamW(parameters, lr=rate, weight_decay=0.0, schedule=cosine(steps))


def train(way: Way, seed: int, rate: float) -> tuple[LoraModel, Shift, list[float]]:
    """A trained model, its task, and the loss of each step."""
    task = shift(seed)
    model = adapted(way, task, seed)
    steps = EPOCHS * -(-len(task.train[0]) // BATCH)
    trainer = Trainer(model, optimizer(way, model, rate, steps), CrossEntropyLoss(), seed=seed, progress=False)
    history = trainer.fit(task.train, epochs=EPOCHS, batch_size=BATCH)
    if way.cut:
        model.compact("default")
    return model.eval(), task, [float(record["loss"]) for record in history.steps]


def share(model: LoraModel, pair: tuple[np.ndarray, np.ndarray]) -> float:
    """Accuracy in %."""
    right, count = accuracy(model(pair[0]).numpy(), pair[1])
    return 100 * right / count


def outcome(way: Way, seeds: Sequence[int]) -> Outcome:
    """Train at every rate, choose the rate by images of its own, and report other images."""
    best: tuple[float, list[Any]] | None = None
    for rate in (way.faster * rate for rate in RATES):
        runs = [train(way, seed, rate) for seed in seeds]
        chosen = mean(share(model, task.chosen_by) for model, task, _ in runs)
        if best is None or chosen > best[0]:
            best, found = (chosen, runs), rate
    assert best is not None
    runs = best[1]
    reached = [share(model, task.reported) for model, task, _ in runs]
    sizes = [file_size(model) for model, _, _ in runs]
    numbers = [model.count(trainable=True) for model, _, _ in runs]
    losses = np.mean([losses for _, _, losses in runs], axis=0).tolist()
    return Outcome(
        way.label, mean(reached), max(reached) - min(reached), found, round(mean(numbers)), round(mean(sizes)), float("nan"), losses
    )  # fmt: skip


def file_size(model: LoraModel) -> int:
    """Bytes of the adapter as a safetensors file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        model.save(path, format="safetensors")
        return path.stat().st_size


def step_times(ways: Sequence[Way], *, turns: int = 7, steps: int = 40) -> dict[str, float]:
    """Milliseconds of a training step of each way, their turns interleaved: the median of the turns."""
    task = shift(0)
    x, y = (array[:BATCH] for array in task.train)
    stepping = {}
    for way in ways:
        model = adapted(way, task, 0).train()
        stepping[way.label] = model, optimizer(way, model, 1e-3, 10**6), model.controllers(10**6)
    taken: dict[str, list[float]] = {way.label: [] for way in ways}
    for turn in range(turns + 1):
        for label, (model, made, controllers) in stepping.items():
            start = time.perf_counter()
            for _ in range(steps):
                step(model, made, controllers, x, y)
            if turn:
                taken[label].append((time.perf_counter() - start) / steps * 1e3)
    return {label: median(times) for label, times in taken.items()}


def step(model: LoraModel, made: AdamW, controllers: Sequence[Any], x: np.ndarray, y: np.ndarray) -> None:
    """One step of training, as a loop without a Trainer takes it."""
    for controller in controllers:
        controller.before_step()
    loss = ops.cross_entropy(model(x), y)
    for controller in controllers:
        if (penalty := controller.penalty()) is not None:
            loss = loss + penalty
    made.zero_grad()
    loss.backward()
    for controller in controllers:
        controller.before_update()
    made.step()
    for controller in controllers:
        controller.after_update(float(made.lr))
