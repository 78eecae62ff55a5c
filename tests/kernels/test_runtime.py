"""The thread pool, the thread count and the cache of compiled code."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import loratk
from loratk.errors import ConfigError
from loratk.kernels import get_backend, runtime

pytestmark = pytest.mark.kernels

LARGE = np.linspace(-3, 3, 1 << 17, dtype=np.float32)
COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
X = LARGE if COMPILED else LARGE[::128].copy()


def silu():
    return get_backend("cpu").silu(X)


def mark(start, stop, seen):
    """A loop that notes what it was given, and which thread ran it."""
    seen.append((start, stop, threading.current_thread().name))


def test_parts_cover_the_range_once():
    for size in (1, 2, 5, 100):
        for threads in (1, 2, 3, 7):
            seen = []
            with runtime.num_threads(threads):
                runtime.parallel_for(mark, size, seen)
            assert [i for start, stop, _ in sorted(seen) for i in range(start, stop)] == list(range(size))
            assert len({name for _, _, name in seen}) == len(seen) == min(threads, size)


def test_nothing_runs_over_an_empty_range():
    seen = []
    runtime.parallel_for(mark, 0, seen)
    assert not seen


def test_grain_keeps_small_work_on_one_thread():
    seen = []
    with runtime.num_threads(4):
        runtime.parallel_for(mark, 199, seen, grain=100)
    assert [(start, stop) for start, stop, _ in seen] == [(0, 199)]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_comes_out_when_all_parts_have_ended(failing):
    ended = []

    def loop(start, stop):
        if start == failing:
            raise KeyError(f"part {start}")
        time.sleep(0.02)
        ended.append(start)

    with runtime.num_threads(3):
        with pytest.raises(KeyError, match=f"part {failing}"):
            runtime.parallel_for(loop, 3)
        assert sorted([*ended, failing]) == [0, 1, 2]
        seen = []
        runtime.parallel_for(mark, 3, seen)  # and the pool still works
        assert len({name for _, _, name in seen}) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
def test_ctrl_c_waits_for_the_workers():
    ended = []

    def loop(start, stop):
        if start:
            time.sleep(0.3)
        ended.append(start)

    with runtime.num_threads(2):
        runtime.parallel_for(lambda start, stop: None, 2)  # workers are started, compiled code is loaded
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            runtime.parallel_for(loop, 2)
        assert ended == [0, 1]
        timer.join()
        runtime.parallel_for(loop, 2)
        assert ended == [0, 1, 0, 1]


def test_two_threads_may_launch_at_once():
    want, got = silu(), []

    def work():
        for _ in range(50):
            got.append(silu())

    with runtime.num_threads(2):
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(got) == 100
    assert all(np.array_equal(each, want) for each in got)


def test_a_loop_may_launch_another():
    seen = []

    def outer(start, stop):
        runtime.parallel_for(mark, 10, seen)

    with runtime.num_threads(2):
        runtime.parallel_for(outer, 2)
    assert sum(stop - start for start, stop, _ in seen) == 20


# Work that is handed over without Python (`spin.share`), as a chain of layers does


def through_a_chain():
    """What a chain of two layers makes of 64 rows, and all its gradients: work for two threads."""
    cpu, rng = get_backend("cpu"), np.random.default_rng(0)
    x, g = rng.standard_normal((64, 48)), rng.standard_normal((64, 40))
    links = []
    for d, k in ((48, 80), (80, 40)):
        links += [cpu.freeze_weight(rng.standard_normal((d, k))), None, rng.standard_normal((d, 5)), rng.standard_normal((5, k))]
    options = {"scalings": (1.0, 2.0), "relus": (True, False)}
    y, kept = cpu.lora_chain(x, *links, **options)
    return y, *cpu.lora_chain_grad(g, x, y, kept, *links, **options)


def same_chain(got, want):
    return all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))


def test_shared_work_gives_the_same_bits_from_several_threads_at_once():
    want, got = through_a_chain(), []

    def work():
        for _ in range(50):
            got.append(same_chain(through_a_chain(), want))

    with runtime.num_threads(3):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == [True] * 150


def test_shared_work_and_calls_use_the_same_workers():
    want, want_silu = through_a_chain(), silu()
    with runtime.num_threads(3):
        for _ in range(100):
            assert same_chain(through_a_chain(), want)
            assert np.array_equal(silu(), want_silu)


def test_shared_work_needs_no_worker_awake():
    want = through_a_chain()
    with runtime.num_threads(2):
        through_a_chain()
        time.sleep(0.05)  # long after the worker went to sleep
        assert same_chain(through_a_chain(), want)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_shared_work_after_fork():
    with runtime.num_threads(2):
        want = through_a_chain()
        child = os.fork()
        if not child:
            signal.alarm(20)
            os._exit(0 if all(same_chain(through_a_chain(), want) for _ in range(20)) else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_after_fork():
    with runtime.num_threads(2):
        want = silu()
        child = os.fork()
        if not child:
            signal.alarm(20)
            os._exit(0 if np.array_equal(silu(), want) and len(runtime._pool._workers) == int(COMPILED) else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_works_in_a_spawned_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(silu)
    np.testing.assert_array_equal(got, silu())


@pytest.mark.parametrize("threads", [0, -1, 2.0, "2", True, None])
def test_bad_number_of_threads(threads):
    with pytest.raises(ConfigError, match=f"whole number of at least 1, found {threads!r}"):
        runtime.set_num_threads(threads)


def test_number_of_threads_is_put_back():
    before = runtime.get_num_threads()
    inside = []

    def fail():
        with runtime.num_threads(before + 3):
            inside.append(runtime.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [before + 3]
    assert runtime.get_num_threads() == before


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5"])
def test_bad_environment_variable(asked, monkeypatch):
    monkeypatch.setenv("LORATK_NUM_THREADS", asked)
    monkeypatch.setattr(runtime, "_threads", 0)
    with pytest.raises(ConfigError, match=f"LORATK_NUM_THREADS must be a whole number of at least 1, found '{asked}'"):
        runtime.get_num_threads()


def test_environment_variable(monkeypatch):
    monkeypatch.setattr(runtime, "_threads", 0)
    monkeypatch.setenv("LORATK_NUM_THREADS", " 5 ")
    assert runtime.get_num_threads() == 5
    monkeypatch.setattr(runtime, "_threads", 0)
    monkeypatch.setenv("LORATK_NUM_THREADS", "")
    assert runtime.get_num_threads() >= 1


@pytest.fixture
def package(tmp_path):
    """A copy of loratk whose sources a test may edit."""
    copy = tmp_path / "source" / "loratk"
    copy.mkdir(parents=True)
    (copy / "__init__.py").write_text("")
    shutil.copy(Path(loratk.__file__).with_name("errors.py"), copy)
    shutil.copytree(Path(loratk.__file__).parent / "kernels", copy / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def in_copy(package, code, cache, **variables):
    """What `code` prints when it runs on the copy."""
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "NUMBA_CACHE_DIR": str(cache), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=package.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


RELU_GRAD = """
import numpy as np
from loratk.kernels import get_backend
from loratk.kernels.cpu import elementwise
one = np.ones(3, np.float32)
print(get_backend("cpu").relu_grad(one, one)[0], sum(elementwise._relu_grad.stats.cache_hits.values()))
"""


@pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
def test_compiled_code_is_kept_until_any_kernel_source_changes(package, tmp_path):
    cache = tmp_path / "cache"
    assert in_copy(package, RELU_GRAD, cache) == ["1.0", "0"]
    assert in_copy(package, RELU_GRAD, cache) == ["1.0", "1"]
    source = package / "kernels" / "cpu" / "vmath.py"  # not the file of the loop that is compiled
    source.write_text(source.read_text() + "\n# edited\n")
    assert in_copy(package, RELU_GRAD, cache) == ["1.0", "0"]


@pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
def test_works_where_nothing_can_be_written(package, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = "from loratk.kernels import runtime; print(runtime.cache_dir())" + RELU_GRAD
    assert in_copy(package, code, blocked / "cache") == ["None", "1.0", "0"]
