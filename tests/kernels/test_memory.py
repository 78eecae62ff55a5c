"""Memory of large results is used again once nobody refers to it, and never before."""

import threading
import tracemalloc

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, ops
from loratk.kernels import get_backend, memory
from loratk.nn import MLP, AdamW

needs_counts = pytest.mark.skipif(not memory.COUNTED, reason="this Python does not count references, so no memory is used again")
SHAPE = (300, 200)  # large


def place(array):
    return array.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def nothing_kept():
    memory.release_memory()


@pytest.mark.parametrize("shape", [(), (0,), (3,), SHAPE, (2, 1, 70_001)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_an_array_is_what_was_asked_for(shape, dtype):
    array = memory.empty(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    array[...] = 7
    assert (array == 7).all()


@needs_counts
def test_large_arrays_begin_on_a_cache_line():
    assert [place(memory.empty((70_000 + i,), np.float32)) % memory.ALIGNED for i in range(20)] == [0] * 20


@needs_counts
def test_what_is_let_go_is_used_again():
    first = memory.empty(SHAPE, np.float32)
    where = place(first)
    del first
    assert place(memory.empty(SHAPE, np.float32)) == where


@needs_counts
@pytest.mark.parametrize("view", [lambda a: a[10:], lambda a: a.T, lambda a: a.reshape(-1)[5:6], lambda a: memoryview(a)])
def test_a_view_keeps_the_memory(view):
    first = memory.empty(SHAPE, np.float32)
    where, kept = place(first), view(first)
    del first
    assert place(memory.empty(SHAPE, np.float32)) != where
    del kept
    assert where in {place(memory.empty(SHAPE, np.float32)) for _ in range(2)}


@needs_counts
def test_arrays_of_one_size_in_use_never_share_memory():
    held = [memory.empty(SHAPE, np.float32) for _ in range(5)]
    for i, array in enumerate(held):
        array[...] = i
    assert [set(array.flat) for array in held] == [{i} for i in range(5)]


def test_threads_never_get_the_same_memory():
    wrong = []

    def work(number):
        for _ in range(300):
            array = memory.empty(SHAPE, np.float64)
            array[...] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@needs_counts
def test_what_nobody_uses_is_let_go_beyond_a_limit(monkeypatch):
    memory.release_memory()  # what other tests have left
    monkeypatch.setattr(memory, "IDLE", 1 << 20)
    held = [memory.empty((1 << 18,), np.float32) for _ in range(4)]
    del held
    kept = memory.empty((1 << 19,), np.float32)  # of another size
    assert sum(len(shelf) for shelf in memory._shelves.values()) == 1
    assert kept.size


@needs_counts
def test_release_memory_gives_back_what_is_free_and_nothing_else():
    tracemalloc.start()
    kept, dropped = memory.empty((1 << 18,), np.float32), memory.empty((1 << 20,), np.float32)
    kept[...] = 3
    del dropped
    before, _ = tracemalloc.get_traced_memory()
    memory.release_memory()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert before - after >= 1 << 22
    assert (kept == 3).all()


@needs_counts
@pytest.mark.skipif(get_backend("cpu").kernels["add"] is get_backend("reference").kernels["add"], reason="needs compiled loops")
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_training_step_allocates_no_large_array_once_it_has_come_to_rest(method):
    model = LoraModel.adapt(MLP([256, 512, 512, 64], rng=0), LoraConfig(rank=4, method=method))
    x, labels = np.random.default_rng(0).standard_normal((512, 256), np.float32), np.arange(512) % 64
    optimiser = AdamW(model.trainable(), lr=1e-3)

    def step():
        optimiser.zero_grad()
        ops.cross_entropy(model(x), labels).backward()
        optimiser.step()

    for _ in range(3):
        step()
    tracemalloc.start()
    step()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 1 << 20  # a result of one layer; compiled loops have half of that to pack rows in


def test_results_of_earlier_steps_stay_what_they_were():
    model = LoraModel.adapt(MLP([128, 256, 128], rng=0), LoraConfig(rank=4))
    x = np.random.default_rng(0).standard_normal((256, 128), np.float32)
    results = [model(x * i).numpy() for i in range(5)]
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, model(x * i).numpy())
