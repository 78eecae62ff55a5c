"""Controllers under the Trainer: what they tell, what a checkpoint keeps of them, and a run that goes on with the same bits."""

import numpy as np
import pytest
from train_helpers import InterruptAt, outcome

from loratk import LoraConfig, LoraModel, ops
from loratk.errors import ConfigError, StateError
from loratk.lora import Controller, controlled_step
from loratk.nn import MLP, AdamW
from loratk.train import Callback, Trainer, spiral, split

TRAIN, HELD = split(*spiral(130, rng=0), (0.8, 0.2), seed=0)
EPOCHS = 4  # of 7 steps
METHODS = {
    "adalora": {"target_rank": 2, "tinit": 3, "tfinal": 8, "deltaT": 2},
    "sora": {"lambda": 2.0, "schedule": "linear", "max_lambda": 4.0},
    "dylora": {"update": "all"},
    "elastic": {"every": 3, "start_rank": 3, "energy": 0.9},
    "lora": {},
}


def make(method="adalora", callbacks=(), max_norm=None, options=None, sizes=(2, 12, 12, 3), **more):
    settings = {"rank": 4, "alpha": 8, "dropout": 0.1, "method": method, "targets": ["2"], "seed": 3}
    options = METHODS[method] if options is None else options
    base = MLP(list(sizes), rng=1)
    model = LoraModel.adapt(base, LoraConfig(**settings, options=options, max_norm=max_norm))
    return Trainer(model, AdamW(model.trainable(), lr=0.03), ops.cross_entropy, seed=5, callbacks=list(callbacks), progress=False, **more)


def fit(trainer, **more):
    return trainer.fit(TRAIN, **{"epochs": EPOCHS, "batch_size": 16, "validation": HELD, **more})


@pytest.mark.parametrize(("step", "suffix"), [(1, ".npz"), (5, ".npz"), (6, ".h5"), (14, ".npz"), (21, ".h5"), (26, ".npz")])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path, method, step, suffix):
    cap = 0.5 if method in ("lora", "adalora") else None
    straight = make(method, [InterruptAt()], cap)
    fit(straight)
    path = tmp_path / f"run{suffix}"
    with pytest.raises(KeyboardInterrupt):
        fit(make(method, [InterruptAt(step)], cap, checkpoint=path))
    resumed = make(method, [InterruptAt()], cap)
    resumed.resume(path)
    resumed.save(tmp_path / "again.npz")  # before it goes on: nothing of the controllers may be lost
    resumed = make(method, [InterruptAt()], cap)
    resumed.resume(tmp_path / "again.npz")
    fit(resumed)
    assert outcome(resumed) == outcome(straight)


@pytest.mark.parametrize("method", METHODS)
def test_the_trainer_and_a_loop_of_your_own_do_the_same(method):
    trainer = make(method, max_norm=0.5)
    batches = [(TRAIN[0][i : i + 16], TRAIN[1][i : i + 16]) for i in range(0, 96, 16)]
    trainer.fit(batches, epochs=2)
    other = make(method, max_norm=0.5)
    model, optimizer = other.model, other.optimizer
    controllers = model.train().controllers(12)
    for _ in range(2):
        for x, y in batches:
            controlled_step(controllers, optimizer, lambda x=x, y=y: ops.cross_entropy(model(x), y))
    for name, value in trainer.model.state_dict().items():
        assert np.array_equal(value, model.state_dict()[name]), name
    assert {n: str(g.bit_generator.state) for n, g in model.generators().items()} == {
        n: str(g.bit_generator.state) for n, g in trainer.model.generators().items()
    }


def test_the_record_of_a_step_tells_what_controllers_did(tmp_path):
    trainer = make("adalora", max_norm=0.2, log=tmp_path / "log.jsonl")
    fit(trainer)
    steps = trainer.history.steps
    assert [steps[i]["ranks"] for i in (0, 19, 27)] == [4, 2, 2]
    assert all(step["penalty"] > 0 for step in steps)
    assert {step["scaled_down"] for step in steps} <= {0, 1}
    assert max(step["largest_norm"] for step in steps) <= 0.2 + 1e-6
    assert '"ranks": 2' in (tmp_path / "log.jsonl").read_text()


def test_validation_sees_the_whole_adapter_of_dylora():
    seen = []

    class Look(Callback):
        def on_validation_end(self, trainer, record):
            seen.append(trainer.model.layers["2"].adapter("default").block("").rank_used)

    fit(make("dylora", [Look()]))
    assert seen == [None] * EPOCHS


def test_another_fit_is_another_schedule_also_after_a_resume(tmp_path):
    """A checkpoint of a fit that had ended starts a new one as the same Trainer would."""
    one = make()
    fit(one)
    one.save(tmp_path / "done.npz")
    fit(one, epochs=EPOCHS)
    other = make()
    other.resume(tmp_path / "done.npz")
    fit(other, epochs=EPOCHS)
    assert outcome(other) == outcome(one)
    assert [s["ranks"] for s in one.history.steps[28:32]] == [4, 4, 4, 3]


def test_a_checkpoint_of_other_controllers_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(make("lora", [InterruptAt(3)], checkpoint=tmp_path / "run.npz"))
    other = make("lora", [InterruptAt()], max_norm=1.0)
    other.resume(tmp_path / "run.npz")
    with pytest.raises(ConfigError, match=r"written with the controllers \[\], this model has \['MaxNorm'\]"):
        fit(other)


def test_a_step_that_fails_leaves_no_trace():
    class Fails(Controller):
        def penalty(self):
            raise RuntimeError("no")

    trainer = make("dylora")
    controllers = trainer.model.controllers(28)
    trainer.model.controllers = lambda steps=None: [*controllers, Fails()]
    before = {name: str(g.bit_generator.state) for name, g in trainer.model.generators().items()}
    state = {name: value.tobytes() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="no"):
        fit(trainer)
    assert {name: str(g.bit_generator.state) for name, g in trainer.model.generators().items()} == before
    assert {name: value.tobytes() for name, value in trainer.model.state_dict().items()} == state


def test_an_adapter_cut_between_fits_needs_a_new_optimiser_and_then_trains_on():
    trainer = make("elastic", options={"every": 3, "start_rank": 4, "energy": 0.5}, sizes=(2, 12, 12, 3))
    fit(trainer)
    assert trainer.model.compact().after["2"] < 4
    with pytest.raises(Exception, match="after resizing a parameter, make a new optimiser"):
        fit(trainer, epochs=1)
    trainer = Trainer(trainer.model, AdamW(trainer.model.trainable(), lr=0.01), ops.cross_entropy, progress=False)
    fit(trainer, epochs=1)


def test_an_adapter_cut_in_the_middle_of_a_fit_stops_it_with_a_clear_error():
    class Cut(Callback):
        def on_epoch_end(self, trainer, record):
            part = trainer.model.layers["2"].adapter("default").block("")
            part.lora_E.assign(np.array([1, 0, 0, 1], np.float32))
            trainer.model.compact()

    with pytest.raises(StateError, match=r"changed since this run began .*Make a new optimiser"):
        fit(make("adalora", [Cut()]))


def test_two_adapters_tell_their_numbers_apart():
    trainer = make("adalora")
    options = dict(METHODS["adalora"])
    trainer.model.add_adapter("other", LoraConfig(rank=3, method="adalora", targets=["4"], options=options | {"target_rank": 1}))
    trainer.model.set_active(["default", "other"])
    trainer = Trainer(trainer.model, AdamW(trainer.model.trainable(), lr=0.01), ops.cross_entropy, progress=False)
    fit(trainer)
    last = trainer.history.steps[-1]
    assert (last["ranks"], last["ranks.1"]) == (2, 1)
