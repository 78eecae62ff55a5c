"""Checkpoints: a resumed run ends with the bits of an uninterrupted one, and what does not fit is refused."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from train_helpers import BATCH_SIZE, EPOCHS, HELD, STEPS, TRAIN, InterruptAt, fit, network, outcome, trainer

from loratk import nn
from loratk.autograd import ops
from loratk.errors import ConfigError, FormatError, StateError, StoreError
from loratk.io import Hdf5Store, find_store
from loratk.lora import LoraConfig, LoraModel
from loratk.nn.optim import AdamW
from loratk.train import Callback, EarlyStopping, Trainer, accuracy
from loratk.train.model_state import fingerprint


@pytest.fixture(scope="module")
def want():
    straight = trainer([InterruptAt()])
    fit(straight)
    return outcome(straight)


STORES = {"hdf5": Hdf5Store()}
PLACES = [(step, "on_step_end") for step in (1, 6, 7, 8, 17, STEPS)]
PLACES += [(7, "on_epoch_start"), (7, "on_validation_end"), (14, "on_epoch_end"), (STEPS, "on_epoch_end")]


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(("step", "event"), PLACES)
def test_a_run_resumed_after_ctrl_c_ends_with_the_same_bits(tmp_path, want, step, event, suffix):
    path = tmp_path / f"run{suffix}"
    with pytest.raises(KeyboardInterrupt):
        fit(trainer([InterruptAt(step, event)], checkpoint=path))
    resumed = trainer([InterruptAt()])
    resumed.resume(path)
    assert resumed.step == step + (event == "on_epoch_start")  # the step that had begun is finished
    fit(resumed)
    assert outcome(resumed) == want


def test_the_same_trainer_can_finish_its_interrupted_fit(want):
    interrupted = trainer([InterruptAt(9)])
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted)
    fit(interrupted)
    assert outcome(interrupted) == want


class CopyCheckpoint(Callback):
    def on_step_end(self, trainer, record):
        path = trainer.checkpoint.with_name(f"copy{record['step']}.npz")
        trainer.save(path)


def test_a_run_killed_between_checkpoints_repeats_only_what_came_after_the_last(tmp_path, want):
    killed = trainer([CopyCheckpoint()], checkpoint=tmp_path / "run.npz", checkpoint_every=4)
    fit(killed)
    for step in (4, 11):
        resumed = trainer([CopyCheckpoint()], checkpoint=tmp_path / "again.npz")
        resumed.resume(tmp_path / f"copy{step}.npz")
        fit(resumed)
        assert outcome(resumed) == want


def test_accumulation_resumes_in_the_middle_of_an_epoch(tmp_path):
    straight = trainer([InterruptAt()], accumulate=3)
    fit(straight)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer([InterruptAt(5)], accumulate=3, checkpoint=tmp_path / "run.npz"))
    resumed = trainer([InterruptAt()], accumulate=3)
    resumed.resume(tmp_path / "run.npz")
    fit(resumed)
    assert outcome(resumed) == outcome(straight)
    assert [record["rows"] for record in straight.history.steps[:3]] == [48, 48, 8]


def test_early_stopping_counts_on_after_a_resume(tmp_path):
    def watched(step, **options):
        return trainer([EarlyStopping("loss", patience=3, min_delta=10.0), InterruptAt(step)], **options)

    straight = watched(0)
    fit(straight, epochs=9)
    assert straight.epoch == 4
    with pytest.raises(KeyboardInterrupt):
        fit(watched(17, checkpoint=tmp_path / "run.npz"), epochs=9)
    resumed = watched(0)
    resumed.resume(tmp_path / "run.npz")
    fit(resumed, epochs=9)
    assert outcome(resumed) == outcome(straight)


def test_batches_of_a_function_and_a_list_resume_where_they_were(tmp_path):
    x, y = TRAIN

    def epoch_batches(epoch):
        order = np.random.default_rng(epoch).permutation(len(x))
        return [(x[rows], y[rows]) for rows in np.array_split(order, 5)]

    for data in (epoch_batches, epoch_batches(0)):
        straight = trainer([InterruptAt()])
        straight.fit(data, epochs=2, validation=HELD)
        with pytest.raises(KeyboardInterrupt):
            trainer([InterruptAt(7)], checkpoint=tmp_path / "run.npz").fit(data, epochs=2, validation=HELD)
        resumed = trainer([InterruptAt()])
        resumed.resume(tmp_path / "run.npz")
        resumed.fit(data, epochs=2, validation=HELD)
        assert outcome(resumed) == outcome(straight)


def test_data_that_has_become_shorter_is_noticed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer([InterruptAt(4)], checkpoint=tmp_path / "run.npz").fit(lambda epoch: [TRAIN] * 5, epochs=1, validation=HELD)
    resumed = trainer([InterruptAt()])
    resumed.resume(tmp_path / "run.npz")
    with pytest.raises(StateError, match="4 batches of epoch 1 were trained on before, but now it has fewer"):
        resumed.fit(lambda epoch: [TRAIN] * 3, epochs=1, validation=HELD)


def test_the_fingerprint_is_of_names_shapes_dtypes_and_bytes():
    def frozen(shape=(2, 3), dtype=np.float32, value=0.0, name="weight"):
        module = nn.Module()
        setattr(module, name, nn.Parameter(np.full(shape, value, dtype), requires_grad=False))
        module.moving = nn.Parameter(np.random.default_rng().random(3))
        return fingerprint(module)

    assert frozen() == frozen()
    others = [frozen(shape=(3, 2)), frozen(dtype=np.float64), frozen(value=-0.0), frozen(name="bias"), frozen(shape=(0,))]
    assert len({frozen(), *others, frozen(shape=(0,), dtype=np.float64)}) == 7


class InterruptInForward(nn.Module):
    """Raises in the middle of a step, after the dropout before it has drawn."""

    def __init__(self):
        self.left = 5

    def forward(self, x):
        self.left -= self.training
        if not self.left:
            raise KeyboardInterrupt
        return x


def test_a_step_cut_in_the_middle_is_discarded_whole(tmp_path):
    def make(left, **options):
        model = network()
        model.get("4").left = left
        model.replace("4", InterruptInForward())
        model.get("4").left = left
        return Trainer(model, AdamW(model.trainable(), lr=0.01), ops.cross_entropy, seed=7, **options)

    straight = make(-1)
    fit(straight)
    cut = make(5, checkpoint=tmp_path / "run.npz")
    with pytest.raises(KeyboardInterrupt):
        fit(cut)
    assert cut.step == 4
    resumed = make(-1)
    resumed.resume(tmp_path / "run.npz")
    fit(resumed)
    assert outcome(resumed) == outcome(straight)


class PressCtrlC(nn.Module):
    def __init__(self, times):
        self.calls, self.times = 0, times

    def forward(self, x):
        self.calls += self.training
        for _ in range(self.times if self.calls == 10 else 0):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return x


@pytest.mark.skipif(os.name == "nt", reason="a process cannot send itself Ctrl-C on Windows")
@pytest.mark.parametrize(("times", "step"), [(1, 10), (2, 9)])
def test_a_real_ctrl_c_finishes_the_running_step_and_a_second_one_discards_it(tmp_path, times, step):
    model = nn.Sequential(network(), PressCtrlC(times))
    run = Trainer(model, AdamW(model.trainable(), lr=0.01), ops.cross_entropy, checkpoint=tmp_path / "run.npz")
    with pytest.raises(KeyboardInterrupt):
        fit(run)
    assert run.step == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = Trainer(model, run.optimizer, ops.cross_entropy)
    resumed.resume(tmp_path / "run.npz")
    assert resumed.step == step


def test_an_optimiser_cut_in_half_leaves_the_last_checkpoint_alone(tmp_path):
    run = trainer([InterruptAt()], checkpoint=tmp_path / "run.npz", checkpoint_every=2)
    step = run.optimizer.step

    def half():
        step()
        if run.step == 5:
            raise KeyboardInterrupt

    run.optimizer.step = half
    with pytest.raises(KeyboardInterrupt):
        fit(run)
    with pytest.raises(StateError, match="cut off in the middle of an update"):
        fit(run)
    resumed = trainer([InterruptAt()])
    resumed.resume(tmp_path / "run.npz")
    assert resumed.step == 4


def test_training_works_in_another_thread(want):
    runs = [trainer([InterruptAt()]) for _ in range(2)]
    threads = [threading.Thread(target=fit, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome(run) == want for run in runs] == [True, True]


def test_resuming_a_finished_run_trains_no_more_but_can_be_extended(tmp_path, want):
    fit(trainer([InterruptAt()], checkpoint=tmp_path / "run.npz"))
    again = trainer([InterruptAt()])
    again.resume(tmp_path / "run.npz")
    fit(again)
    assert outcome(again) == want
    longer, straight = trainer([InterruptAt()]), trainer([InterruptAt()])
    longer.resume(tmp_path / "run.npz")
    fit(longer, epochs=EPOCHS + 2)
    fit(straight, epochs=EPOCHS + 2)
    assert outcome(longer) == outcome(straight)


def test_a_frozen_weight_is_not_stored_but_recognised(tmp_path):
    path = tmp_path / "run.npz"
    fit(trainer(checkpoint=path))
    with np.load(path) as file:
        assert not [name for name in file.files if "model/0." in name]
        assert "model/3.weight" in file.files
    other = trainer()
    other.model.get("0").weight.assign(other.model.get("0").weight.numpy() + 1)
    before = outcome(other)
    with pytest.raises(FormatError, match="fingerprint differs"):
        other.resume(path)
    assert outcome(other) == before


def test_everything_that_does_not_fit_is_listed_at_once(tmp_path):
    path = tmp_path / "run.npz"
    fit(trainer(checkpoint=path))
    with pytest.raises(ConfigError, match=r"(?s)accumulate is 2 here, but was 1.*clip_norm is None here, but was 1.0.*seed is 8") as error:
        trainer(seed=8, accumulate=2, clip_norm=None).resume(path)
    assert len(str(error.value).splitlines()) == 4
    model = nn.Sequential(nn.Linear(2, 16, rng=0), nn.ReLU(), nn.ReLU(), nn.Linear(16, 9, rng=0))
    wrong = Trainer(model, AdamW(model.trainable(), lr=0.01), ops.cross_entropy, seed=7, clip_norm=1.0, metrics=[accuracy])
    with pytest.raises(FormatError) as error:
        wrong.resume(path)
    for part in (
        "'0.weight' [2, 16] trains here",
        "'5.bias' [3] is in the checkpoint",
        "'3.weight' is float32 [16, 9] here, but float32 [16, 16]",
        "fingerprint",
        "generator '2.rng' is only in the checkpoint",
        "callbacks are [] here, but ['EarlyStopping']",
    ):
        assert part in str(error.value)


def test_a_fit_unlike_the_one_to_finish_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    with pytest.raises(KeyboardInterrupt):
        fit(trainer([InterruptAt(3)], checkpoint=path))
    resumed = trainer([InterruptAt()])
    resumed.resume(path)
    with pytest.raises(ConfigError) as error:
        resumed.fit((TRAIN[0][:-1], TRAIN[1][:-1]), epochs=EPOCHS, batch_size=BATCH_SIZE + 1, validation=HELD, shuffle=False)
    for part in (
        "train batch_size is 17 here, but was 16",
        "train shuffle is False",
        "train x is 'float32[103, 2]'",
        "validation batch_size",
    ):
        assert part in str(error.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(StoreError, match="missing"):
        trainer().resume(tmp_path / "missing.npz")
    np.savez(tmp_path / "plain.npz", a=np.zeros(3))
    with pytest.raises(FormatError, match="not a training checkpoint"):
        trainer().resume(tmp_path / "plain.npz")
    fit(trainer(checkpoint=tmp_path / "run.npz"))
    data = bytearray((tmp_path / "run.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "run.npz").write_bytes(data)
    with pytest.raises(FormatError, match="checksum"):
        trainer().resume(tmp_path / "run.npz")


def test_where_checkpoints_go_is_checked_at_once(tmp_path):
    with pytest.raises(ConfigError, match="suffix"):
        trainer(checkpoint=tmp_path / "run.txt")
    with pytest.raises(StoreError, match="no folder"):
        trainer(checkpoint=tmp_path / "none" / "run.npz")
    with pytest.raises(ConfigError, match="need a checkpoint"):
        trainer(checkpoint_every=3)


def test_the_last_checkpoints_are_kept(tmp_path):
    fit(trainer(checkpoint=tmp_path / "run.npz", checkpoint_every=5, keep=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.1.npz", "run.2.npz", "run.npz"]
    steps = []
    for name in ("run.npz", "run.1.npz", "run.2.npz"):
        resumed = trainer()
        resumed.resume(tmp_path / name)
        steps.append(resumed.step)
    assert steps == [21, 20, 15]


def test_any_kind_of_bit_generator_is_kept(tmp_path):
    def run(kind):
        model = nn.Sequential(nn.Linear(2, 8, rng=0), nn.Dropout(0.3, rng=np.random.Generator(kind(3))), nn.Linear(8, 3, rng=1))
        return Trainer(model, AdamW(model.trainable(), lr=0.01), ops.cross_entropy)

    for kind in (np.random.MT19937, np.random.Philox, np.random.SFC64):
        straight, saved, resumed = run(kind), run(kind), run(kind)
        fit(straight, epochs=2)
        fit(saved, epochs=1)
        saved.save(tmp_path / "run.npz")
        resumed.resume(tmp_path / "run.npz")
        fit(resumed, epochs=1)
        assert outcome(resumed) == outcome(straight)
    with pytest.raises(FormatError, match="is a PCG64 here, but a SFC64"):
        run(np.random.PCG64).resume(tmp_path / "run.npz")


def test_adapters_resume_on_a_base_that_is_not_stored(tmp_path):
    def run(*extra, **options):
        base = nn.MLP([2, 16, 16, 3], rng=0)
        model = LoraModel.adapt(base, LoraConfig(rank=2, alpha=4, dropout=0.1, seed=3))
        return Trainer(model, AdamW(model.trainable(), lr=0.02), ops.cross_entropy, callbacks=extra, **options)

    straight = run(InterruptAt())
    fit(straight)
    with pytest.raises(KeyboardInterrupt):
        fit(run(InterruptAt(10), checkpoint=tmp_path / "run.h5"))
    resumed = run(InterruptAt())
    resumed.resume(tmp_path / "run.h5")
    fit(resumed)
    assert outcome(resumed) == outcome(straight)
    assert not any(name.endswith("weight") for name in find_store(tmp_path / "run.h5", STORES).read(tmp_path / "run.h5").arrays)
