"""Tasks trained together learn what each learns alone, and a run can be cut and taken up again."""

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, Trainer, ops
from loratk.errors import ConfigError, ShapeError, UnknownNameError
from loratk.nn import MLP, SGD, AdamW
from loratk.train import Callback, MixedBatches, MultiTask, accuracy, mae, r2

RNG = np.random.default_rng(0)
DATA = {
    "sign": ((x := RNG.standard_normal((40, 6))), (x[:, 0] > 0).astype(np.int64)),
    "sum": ((x := RNG.standard_normal((25, 6))), np.stack([x.sum(1), x[:, 0] - x[:, 1]], axis=1)),
}
LOSSES = {"sign": ops.cross_entropy, "sum": ops.mse}


def make(tasks=("sign", "sum")):
    model = LoraModel(MLP([6, 16, 2], rng=0, dtype=np.float64))
    for at, task in enumerate(tasks):
        model.add_adapter(task, LoraConfig(rank=1 + min(at, 1), alpha=8.0, seed=at, method="dora" if task == "sum" else "lora"))
    return model


def values(model, task):
    return np.concatenate([array.ravel() for array in model.state(task).values()])


def test_a_step_for_all_is_a_step_for_each():
    """Every adapter goes its own way, whether the other task's rows are in the batch or not."""
    model = make()
    tasks = MultiTask(model, LOSSES, weights={"sum": 0.5})
    optimizer = SGD(tasks.groups(), lr=0.1)
    alone = make()
    others = {task: SGD([p for layer in alone.layers.values() for p in layer.adapter(task).parameters()], lr=0.1) for task in LOSSES}
    for rows, targets in list(MixedBatches(DATA, batch_size=16, seed=3)(0)):
        optimizer.zero_grad()
        tasks.loss(tasks(rows), targets).backward()
        optimizer.step()
        for task, loss in LOSSES.items():
            mine = targets.rows[task]
            if not len(mine):
                continue
            others[task].zero_grad()
            value = loss(alone(rows.x[mine], adapter=task), targets.targets[task])
            (value * (0.5 if task == "sum" else 1.0)).backward()
            others[task].step()
    for task in LOSSES:
        np.testing.assert_allclose(values(model, task), values(alone, task), rtol=1e-10, atol=1e-12)


def fit(epochs=3, weights=None, **options):
    tasks = MultiTask(make(), LOSSES)
    optimizer = AdamW(tasks.groups({"sign": {"lr": 3e-2}, "sum": {"lr": 1e-2}}), lr=1e-3)
    metrics = tasks.metrics({"sign": [accuracy], "sum": [mae, r2]})
    trainer = Trainer(tasks, optimizer, tasks.loss, metrics=metrics, progress=False, **options)
    source = MixedBatches(DATA, batch_size=8, weights=weights, seed=5)
    return tasks, trainer, source, lambda: trainer.fit(source, epochs=epochs, validation=source)


def test_both_tasks_are_learned_with_measures_of_their_own():
    tasks, trainer, source, run = fit(epochs=60)
    history = run()
    first, last = history.epochs[0], history.epochs[-1]
    assert last["sign accuracy"] > 0.95
    assert last["sum r2"] > 0.95
    for name in ("sign loss", "sum loss", "sum mae", "val_sign loss"):
        assert last[name] < 0.5 * first[name]
    found = trainer.evaluate(source)
    x, y = DATA["sum"]
    np.testing.assert_allclose(found["sum mae"], np.abs(tasks.model.eval()(x, adapter="sum").numpy() - y).mean())


class Stop(Callback):
    def on_step_end(self, trainer, record):
        if record["step"] == 11:
            raise KeyboardInterrupt


@pytest.mark.parametrize("weights", [None, {"sign": 1.0, "sum": 3.0}])
def test_a_run_that_was_cut_ends_with_the_same_bits(tmp_path, weights):
    tasks, *_, run = fit(weights=weights)
    want = run()
    _, trainer, _, cut = fit(weights=weights, checkpoint=tmp_path / "c.npz", callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        cut()
    again, trainer, _, rest = fit(weights=weights, checkpoint=tmp_path / "c.npz", callbacks=[Callback()])
    with pytest.raises(Exception, match="callbacks are"):
        trainer.resume(tmp_path / "c.npz")
    again, trainer, _, rest = fit(weights=weights, checkpoint=tmp_path / "c.npz", callbacks=[Stop()])
    trainer.resume(tmp_path / "c.npz")
    got = rest()
    for task in LOSSES:
        np.testing.assert_array_equal(values(again.model, task), values(tasks.model, task))
    assert [record["sum loss"] for record in got.epochs] == [record["sum loss"] for record in want.epochs]


def test_a_resumed_run_must_mix_as_before(tmp_path):
    _, trainer, _, run = fit(checkpoint=tmp_path / "c.npz", callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        run()
    _, trainer, _, _ = fit(checkpoint=tmp_path / "c.npz", callbacks=[Stop()])
    trainer.resume(tmp_path / "c.npz")
    with pytest.raises(ConfigError, match="train seed is 6 here, but was 5"):
        trainer.fit(MixedBatches(DATA, batch_size=8, seed=6), epochs=3, validation=MixedBatches(DATA, batch_size=8, seed=5))


def seen(source, epoch=0):
    """How often each row of each task comes in an epoch."""
    counts = {task: np.zeros(len(x), int) for task, (x, _) in DATA.items()}
    for rows, targets in source(epoch):
        for task, mine in targets.rows.items():
            for row, y in zip(mine, targets.targets[task], strict=True):
                at = np.flatnonzero((DATA[task][0] == rows.x[row]).all(axis=1))[0]
                np.testing.assert_array_equal(DATA[task][1][at], y)
                assert rows.tasks[row] == task
                counts[task][at] += 1
    return counts


def test_without_weights_every_row_comes_once():
    source = MixedBatches(DATA, batch_size=8, seed=1)
    assert len(source) == 9
    for epoch in range(2):
        assert all((count == 1).all() for count in seen(source, epoch).values())
    orders = [[rows.tasks for rows, _ in source(epoch)] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert [rows.tasks for rows, _ in source.batches(0, skip=3)] == orders[0][3:]
    plain = MixedBatches(DATA, batch_size=8, shuffle=False)
    assert [task for rows, _ in plain(0) for task in rows.tasks] == ["sign"] * 40 + ["sum"] * 25


def test_weights_draw_tasks_and_take_their_rows_in_turn():
    counts = seen(MixedBatches(DATA, batch_size=50, weights={"sign": 1, "sum": 3}, rows=4000, seed=1))
    assert abs(counts["sum"].sum() / 4000 - 0.75) < 0.03
    for count in counts.values():
        assert count.max() - count.min() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"sign": 1.0}}, "weights must name each task once, and none else: 'sum'"),
        ({"weights": {"sign": 1.0, "sum": -1.0}}, "weight of task 'sum' must be a positive number, found -1.0"),
        ({"weights": {"sign": 1.0, "sum": 1.0}, "shuffle": False}, "shuffle=False cannot be"),
        ({"rows": 10}, "rows= goes with weights="),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
    ],
)
def test_mixtures_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        MixedBatches(DATA, **options)


def test_tasks_that_make_no_sense():
    with pytest.raises(ConfigError, match=r"the rows of all x must be of one shape and dtype, found 'a' float64\[2\], 'b' float64\[3\]"):
        MixedBatches({"a": (np.ones((1, 2)), np.ones(1)), "b": (np.ones((1, 3)), np.ones(1))})
    with pytest.raises(ConfigError, match="There is no task"):
        MixedBatches({})
    with pytest.raises(UnknownNameError, match=r"Task 'x' is no adapter of the model. Adapters: 'sign', 'sum'"):
        MultiTask(make(), {"x": ops.mse})
    with pytest.raises(ConfigError, match="There is no task"):
        MultiTask(make(), {})
    with pytest.raises(ConfigError, match="weights for 'sum', which have no loss"):
        MultiTask(make(), {"sign": ops.mse}, weights={"sum": 1.0})
    tasks = MultiTask(make(), {"sign": ops.cross_entropy})
    for call in (tasks.metrics, tasks.groups):
        with pytest.raises(UnknownNameError, match="'sum', which is no task"):
            call({"sum": {}})
    rows, _ = next(MixedBatches(DATA, batch_size=30)(0))
    with pytest.raises(UnknownNameError, match=r"There is no task 'sum'. Tasks: 'sign'"):
        tasks(rows)
    with pytest.raises(ShapeError, match="MultiTask takes TaskRows"):
        tasks(rows.x)


def test_what_trains_are_the_tasks_adapters():
    model = make(("sign", "sum", "other"))
    tasks = MultiTask(model, LOSSES)
    assert model.active == {"sign": 1.0, "sum": 1.0}
    held = [p for layer in model.layers.values() for task in LOSSES for p in layer.adapter(task).parameters()]
    assert {id(p) for p in tasks.trainable()} == {id(p) for p in held}
    assert {id(p) for group in tasks.groups() for p in group["params"]} == {id(p) for p in held}
