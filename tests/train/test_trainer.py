"""The loop: steps, accumulation, validation, callbacks, stopping, and what it refuses."""

import numpy as np
import pytest
from train_helpers import HELD, TRAIN, fit, network, outcome, trainer

from loratk import nn
from loratk.autograd import ops
from loratk.errors import AnomalyError, ConfigError, DtypeError, ShapeError, StateError, UnknownNameError
from loratk.kernels import runtime
from loratk.nn.optim import SGD, AdamW
from loratk.train import Callback, EarlyStopping, Trainer, accuracy, mae, r2, sine
from loratk.train.callbacks import EVENTS


def linear(dtype=np.float64, d=3, k=2):
    return nn.Linear(d, k, rng=0, dtype=dtype)


def regression(rows=20, dtype=np.float64):
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, 3)).astype(dtype), rng.standard_normal((rows, 2)).astype(dtype)


def plain(model, lr=0.1, **options):
    return Trainer(model, SGD(model.trainable(), lr=lr), ops.mse, **options)


def test_it_learns():
    x, y = sine(200, rng=0)
    model = nn.MLP([1, 32, 1], activation="tanh", rng=0)
    run = Trainer(model, AdamW(model.trainable(), lr=0.02), ops.mse, metrics=[r2, mae])
    history = run.fit((x, y), epochs=80, validation=sine(50, rng=1))
    assert history["val_r2"][-1] > 0.9
    assert history["val_mae"][-1] < 0.15
    assert len(history) == 80
    assert len(history.steps) == 80 * 7


def test_a_step_is_gradient_descent_on_the_mean_loss():
    x, y = regression()
    model = linear()
    w, b = (value.numpy().copy() for value in (model.weight, model.bias))
    history = plain(model).fit((x, y), epochs=1, batch_size=20, shuffle=False)
    residual = x @ w + b - y
    assert history.steps[0]["loss"] == pytest.approx(np.mean(residual**2), rel=1e-12)
    np.testing.assert_allclose(model.weight.numpy(), w - 0.1 * 2 * x.T @ residual / residual.size, rtol=1e-12)
    np.testing.assert_allclose(model.bias.numpy(), b - 0.1 * 2 * residual.sum(0) / residual.size, rtol=1e-12)


@pytest.mark.parametrize(("rows", "batch_size", "accumulate"), [(24, 6, 4), (24, 8, 3), (22, 6, 4), (19, 5, 100)])
def test_accumulated_batches_are_one_big_batch(rows, batch_size, accumulate):
    data = regression(rows)
    big, small = linear(), linear()
    want = plain(big, clip_norm=0.5).fit(data, epochs=3, batch_size=rows, shuffle=False)
    got = plain(small, clip_norm=0.5, accumulate=accumulate).fit(data, epochs=3, batch_size=batch_size, shuffle=False)
    np.testing.assert_allclose(small.weight.numpy(), big.weight.numpy(), rtol=1e-13)
    np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-13)
    assert [record["rows"] for record in got.steps] == [rows] * 3
    np.testing.assert_allclose([r["grad_norm"] for r in got.steps], [r["grad_norm"] for r in want.steps], rtol=1e-12)


def test_accumulation_can_weigh_by_what_the_loss_averages_over():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 3)), rng.integers(0, 2, 12)
    y[1:6] = -100

    def run(batch_size, accumulate):
        model = linear()
        run = Trainer(model, SGD(model.trainable(), lr=0.1), ops.cross_entropy, accumulate=accumulate, weight=lambda y: (y >= 0).sum())
        loss = run.fit((x, y), epochs=2, batch_size=batch_size, shuffle=False)["loss"]
        return model.weight.numpy(), loss

    np.testing.assert_allclose(run(6, 2)[0], run(12, 1)[0], rtol=1e-13)
    np.testing.assert_allclose(run(6, 2)[1], run(12, 1)[1], rtol=1e-13)


def test_clipping_bounds_the_step():
    model = linear()
    before = np.concatenate([value.numpy().ravel().copy() for value in model.parameters()])
    history = plain(model, lr=1.0, clip_norm=0.01).fit(regression(), epochs=1, batch_size=20)
    after = np.concatenate([value.numpy().ravel() for value in model.parameters()])
    assert np.linalg.norm(after - before) == pytest.approx(0.01, rel=1e-6)
    assert history.steps[0]["grad_norm"] > 0.01


def test_each_epoch_sees_every_row_once_in_a_new_order():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            self.layer = linear(d=1, k=1)

        def forward(self, x):
            seen.append(x.ravel().tolist())
            return self.layer(x)

    def rows(**options):
        seen.clear()
        x = np.arange(10.0)[:, None] / 10
        plain(Spy(), **options).fit((x, x), epochs=2, batch_size=4)
        assert [len(batch) for batch in seen] == [4, 4, 2] * 2
        epochs = [[row for batch in batches for row in batch] for batches in (seen[:3], seen[3:])]
        assert sorted(epochs[0]) == sorted(epochs[1]) == x.ravel().tolist()
        return epochs

    first, second = rows(seed=3)
    assert first != second
    assert rows(seed=3) == [first, second]
    assert rows(seed=4) != [first, second]


def test_the_number_of_threads_does_not_show():
    got = []
    for threads in (1, 2):
        with runtime.num_threads(threads):
            run = trainer()
            fit(run)
            got.append(outcome(run))
    assert got[0] == got[1]


def test_modes_during_and_after():
    seen = []

    class Mode(nn.Module):
        def forward(self, x):
            seen.append(self.training)
            return self.input(x)

    model = nn.Sequential(Mode(), linear())
    model.eval()
    model.get("0").train()
    run = plain(model)
    data = regression()
    run.fit(data, epochs=1, batch_size=10, validation=data)
    assert seen == [True, True, False, False]
    assert (model.training, model.get("0").training, model.get("1").training) == (False, True, False)
    run.evaluate(data, batch_size=20)
    assert seen[4:] == [False]
    assert model.get("0").training
    assert (model.get("1").weight * 2).requires_grad  # recording is on again


def test_validation_records_no_graph():
    needs = []

    def loss(outputs, y):
        needs.append(outputs.requires_grad)
        return ops.mse(outputs, y)

    model, data = linear(), regression()
    run = Trainer(model, SGD(model.trainable(), lr=0.1), loss)
    run.fit(data, epochs=2, validation=data)
    run.evaluate(data)
    assert needs == [True, False, True, False, False]


def test_evaluation_does_not_depend_on_the_batch_size():
    run = trainer()
    want, got = run.evaluate(HELD, 26), run.evaluate(HELD, 4)
    assert got["accuracy"] == want["accuracy"]
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-6)
    logits = network().eval()(HELD[0]).numpy()
    assert want["accuracy"] == np.mean(logits.argmax(1) == HELD[1])


def test_two_fits_train_twice_as_long():
    once, twice = trainer(callbacks=[]), trainer(callbacks=[])
    fit(once, epochs=4)
    fit(twice, epochs=2)
    fit(twice, epochs=2)
    assert outcome(twice) == outcome(once)
    assert twice.history["epoch"] == [1, 2, 3, 4]


class Recorder(Callback):
    def __init__(self):
        self.events = []

    def on_fit_start(self, trainer):
        self.events.append("fit_start")

    def on_epoch_start(self, trainer):
        self.events.append(f"epoch_start {trainer.epoch}")

    def on_step_end(self, trainer, record):
        self.events.append(f"step {record['step']}")

    def on_validation_end(self, trainer, record):
        assert {"val_loss", "val_accuracy", "epoch", "step"} == record.keys()
        self.events.append("validation")

    def on_epoch_end(self, trainer, record):
        assert {"loss", "accuracy", "val_loss", "val_accuracy", "epoch", "step", "rows", "seconds"} == record.keys()
        self.events.append(f"epoch_end {record['epoch']}")

    def on_fit_end(self, trainer):
        self.events.append("fit_end")


def test_callbacks_see_the_events_in_order():
    recorder = Recorder()
    fit(trainer([recorder]), epochs=2, batch_size=60)
    assert recorder.events == [
        "fit_start", "epoch_start 0", "step 1", "step 2", "validation", "epoch_end 1",
        "epoch_start 1", "step 3", "step 4", "validation", "epoch_end 2", "fit_end",
    ]  # fmt: skip
    assert len(EVENTS) == 6


def test_a_callback_can_stop_the_training_in_the_middle_of_an_epoch():
    class Stop(Recorder):
        def on_step_end(self, trainer, record):
            super().on_step_end(trainer, record)
            if record["step"] == 3:
                trainer.stop("enough")

    stop = Stop()
    run = trainer([stop])
    history = fit(run, epochs=5, batch_size=60)
    assert stop.events[-4:] == ["step 3", "validation", "epoch_end 2", "fit_end"]
    assert (run.stopped, len(history), history.epochs[1]["rows"]) == ("enough", 2, 60)
    fit(run, epochs=1, batch_size=60)
    assert (run.stopped, len(history)) == (None, 3)


def test_a_misspelt_event_is_an_error():
    with pytest.raises(ConfigError, match="defines 'on_epoch_finish', which no Trainer calls"):
        type("Wrong", (Callback,), {"on_epoch_finish": lambda self, trainer: None})


class Scripted(Callback):
    """Overwrites the validation loss, before early stopping looks at it."""

    def __init__(self, *values):
        self.values, self.weights = values, []

    def on_epoch_end(self, trainer, record):
        record["val_loss"] = self.values[int(record["epoch"]) - 1]
        self.weights.append(trainer.model.state_dict())


def test_early_stopping_waits_and_restores_the_best():
    script = Scripted(1.0, 0.5, np.nan, 0.49, 0.6, 0.2, 0.1)
    stopping = EarlyStopping(patience=3, min_delta=0.05)
    run = trainer(callbacks=[script, stopping])
    fit(run, epochs=7)
    assert run.epoch == 5
    assert run.stopped == "val_loss has not improved since epoch 2"
    assert (stopping.best, stopping.best_epoch) == (0.5, 2)
    for name, want in script.weights[1].items():
        np.testing.assert_array_equal(run.model.state_dict()[name], want)
    kept = trainer(callbacks=[Scripted(1.0, 0.5, 0.7), EarlyStopping(patience=1, restore_best=False)])
    fit(kept, epochs=3)
    for name, want in script.weights[2].items():
        np.testing.assert_array_equal(kept.model.state_dict()[name], want)


def test_early_stopping_that_never_fires_restores_the_best_too():
    script = Scripted(1.0, 0.5, 0.7)
    run = trainer(callbacks=[script, EarlyStopping(patience=5)])
    fit(run)
    np.testing.assert_array_equal(run.model.state_dict()["3.weight"], script.weights[1]["3.weight"])
    assert run.stopped is None


def test_early_stopping_asks_for_what_it_needs():
    with pytest.raises(UnknownNameError, match="watches 'val_loss', but an epoch records 'accuracy', 'loss'; pass validation data"):
        fit(trainer(), validation=None)
    with pytest.raises(ConfigError, match="Is more of 'val_bleu' better"):
        EarlyStopping("val_bleu")
    with pytest.raises(UnknownNameError, match="must be 'min' or 'max'"):
        EarlyStopping("val_bleu", mode="up")
    with pytest.raises(ConfigError, match="patience"):
        EarlyStopping(patience=0)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_nothing_is_trained_on_nan(clip_norm):
    x, y = regression()
    y[17] = np.nan
    model = linear()
    run = plain(model, clip_norm=clip_norm)
    with pytest.raises(AnomalyError, match=r"The loss is nan in epoch 1, step 4\. .*lower the learning rate"):
        run.fit((x, y), epochs=1, batch_size=5, shuffle=False)
    assert run.step == 3
    want = linear()
    plain(want, clip_norm=clip_norm).fit((x[:15], y[:15]), epochs=1, batch_size=5, shuffle=False)
    np.testing.assert_array_equal(model.weight.numpy(), want.weight.numpy())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_nothing_is_trained_on_a_gradient_that_is_not_finite(clip_norm):
    model = linear()
    model.weight.assign(np.zeros((3, 2)))
    model.bias.assign(np.zeros(2))
    run = Trainer(model, SGD(model.trainable(), lr=0.1), lambda out, y: ops.sqrt(ops.square(out)).mean(), clip_norm=clip_norm)
    with np.errstate(all="ignore"), pytest.raises(AnomalyError, match="gradient is not, in epoch 1, step 1"):
        run.fit(regression(), epochs=1)
    np.testing.assert_array_equal(model.weight.numpy(), 0)


def test_what_it_refuses():
    x, y = regression()
    model = linear()
    run = plain(model)
    with pytest.raises(ShapeError, match=r"train: x and y must have as many rows.*\(20, 3\) and \(19, 2\)"):
        run.fit((x, y[:-1]), epochs=1)
    with pytest.raises(ShapeError, match="train is empty"):
        run.fit((x[:0], y[:0]), epochs=1)
    with pytest.raises(ShapeError, match="validation is empty"):
        run.fit((x, y), epochs=1, validation=(x[:0], y[:0]))
    with pytest.raises(ConfigError, match="epochs must be an integer of at least 1"):
        run.fit((x, y), epochs=0)
    with pytest.raises(ConfigError, match="batch_size must be"):
        run.fit((x, y), epochs=1, batch_size=0)
    with pytest.raises(ConfigError, match="batch_size is for arrays"):
        run.fit([(x, y)], epochs=1, batch_size=4)
    with pytest.raises(DtypeError, match="make it a list"):
        run.fit(((x, y), (x, y)), epochs=1)
    with pytest.raises(DtypeError, match="found a tuple of 3 as batch 1 of epoch 1"):
        run.fit([(x, y, y)], epochs=1)
    with pytest.raises(DtypeError, match=r"The loss must be a Tensor with a single number.*shape \(20, 2\)"):
        Trainer(model, run.optimizer, lambda out, y: out - y).fit([(x, y)], epochs=1)
    with pytest.raises(ShapeError, match=r"must weigh more than 0 .*, found weight 0.0 for a ndarray"):
        plain(model, weight=lambda y: 0).fit((x, y), epochs=1)
    with pytest.raises(DtypeError, match=r"must have rows .*, found a float"):
        run.fit([(x, 0.5)], epochs=1)
    with pytest.raises(DtypeError, match=r"derive from loratk\.train\.Callback"):
        plain(model, callbacks=[print])
    for name, value in {"accumulate": 0, "seed": -1, "clip_norm": 0, "keep": 0, "checkpoint_every": 0}.items():
        with pytest.raises(ConfigError, match=name):
            plain(model, **{name: value})
    model.freeze()
    with pytest.raises(StateError, match="Nothing of this Linear trains"):
        run.fit((x, y), epochs=1)


def test_batches_that_come_only_once():
    data = regression()
    run = plain(linear())
    with pytest.raises(ConfigError, match="train is a generator, which can be iterated only once, but 2 epochs need it again"):
        run.fit((batch for batch in [data]), epochs=2)
    run.fit((batch for batch in [data]), epochs=1)
    used_up = iter([data])

    class Again:
        def __iter__(self):
            return used_up

    with pytest.raises(StateError, match="train gave no batch in epoch 2"):
        plain(linear()).fit(Again(), epochs=2)
    with pytest.raises(StateError, match="to evaluate gave no batch"):
        run.evaluate([])


def test_fit_within_fit_is_refused():
    class Nested(Callback):
        def on_step_end(self, trainer, record):
            trainer.fit(TRAIN, epochs=1)

    with pytest.raises(StateError, match="in the middle of a fit"):
        fit(trainer([Nested()]))


def test_metrics_are_recorded_for_training_batches_too():
    history = fit(trainer(metrics={"right": accuracy}, callbacks=[]))
    assert set(history.names()) == {"epoch", "step", "rows", "loss", "right", "val_loss", "val_right", "seconds"}
    assert all(0 <= value <= 1 for value in history["right"])
