"""Compiler flags, thread count and cache: the policy of every compiled kernel, in one place."""

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from .pool import Pool

Function = TypeVar("Function", bound=Callable[..., Any])

# Sums may be reordered (so that they vectorise) and products fused into sums; NaN and infinity keep their meaning.
REASSOCIATE = {"reassoc", "contract", "nsz"}
FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

_pool = Pool()
_compiling = threading.Lock()


def _available() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _initial() -> int:
    asked = os.environ.get("LORATK_NUM_THREADS", "").strip()
    if not asked:
        return _available()
    if not asked.isdecimal() or int(asked) < 1:
        raise ConfigError(f"LORATK_NUM_THREADS must be a whole number of at least 1, found {asked!r}.")
    return int(asked)


_threads = 0  # 0: not asked for yet


def get_num_threads() -> int:
    """How many threads the kernels of the cpu backend use."""
    global _threads
    if not _threads:
        _threads = _initial()
    return _threads


def set_num_threads(threads: int) -> None:
    """Use that many threads from now on, in the whole process. Results do not depend on it, to the last bit."""
    global _threads
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ConfigError(f"The number of threads must be a whole number of at least 1, found {threads!r}.")
    _threads = threads


@contextlib.contextmanager
def num_threads(threads: int) -> Iterator[None]:
    """Use that many threads inside a `with` block."""
    before = get_num_threads()
    set_num_threads(threads)
    try:
        yield
    finally:
        set_num_threads(before)


def parallel_for(loop: Callable[..., object], size: int, *args: Any, grain: int = 1) -> None:
    """Run `loop(start, stop, *args)` over range(size), cut into one contiguous part a thread, none under `grain`.

    The loop must own the output of its range, so that neither the cut nor the order of the parts shows in the result.
    """
    parts = min(get_num_threads(), size // grain)
    if parts <= 1:
        if size:
            loop(0, size, *args)
        return
    cuts = [size * part // parts for part in range(parts + 1)]
    _pool.run([partial(loop, start, stop, *args) for start, stop in pairwise(cuts)])


def mailboxes() -> tuple[Any, int]:
    """The workers' mailboxes for `spin.share`, and how many workers the thread count allows; they are roused to watch."""
    count = min(get_num_threads(), len(_pool.mails)) - 1
    if count > 0:
        _pool.rouse(count)
    return _pool.mails, count


@cache
def cache_dir() -> Path | None:
    """Where compiled code is kept, or None where nothing can be written.

    Numba's cache notices a change in the file of the function it compiled, not in the functions called from there, so
    the folder is named after all kernel sources and the versions that compile them. NUMBA_CACHE_DIR moves it.
    """
    import llvmlite
    import numba

    digest = hashlib.sha256(f"{sys.version}|{numba.__version__}|{llvmlite.__version__}".encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    if sys.platform == "win32":
        home = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    else:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(home) / "loratk")
    folder = root / f"kernels-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def jit(function: Function | None = None, *, reassociate: bool = False, inline: bool = False, paste: bool = False) -> Any:
    """Compile a loop for the cpu backend on its first call, outside Python's global lock, and cache the result.

    `reassociate` lets sums be reordered, which vectorises them: still the same bits on every run. `inline` is for
    small functions that compiled loops call; they are not cached on their own. `paste` puts one into its caller before
    either is compiled, which spares compiling it.
    """
    if function is None:
        return partial(jit, reassociate=reassociate, inline=inline, paste=paste)
    import numba

    flags = dict(FLAGS, fastmath=REASSOCIATE if reassociate else {"contract"})
    if paste:
        return numba.njit(inline="always", **flags)(function)
    if inline:
        return numba.njit(**flags)(function)
    folder = cache_dir()
    if folder is None:
        return numba.njit(**flags)(function)
    config: Any = numba.config
    with _compiling:  # Numba takes the folder from its global configuration at decoration
        before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
        try:
            return numba.njit(cache=True, **flags)(function)
        finally:
            config.CACHE_DIR = before


def by_address(function: Function) -> Callable[[], int]:
    """A function(start, stop, argument) of int64 that compiled code calls at an address: compiled when that is first asked for."""
    import numba

    @cache
    def compiled() -> Any:
        folder = cache_dir()
        config: Any = numba.config
        with _compiling:
            before, config.CACHE_DIR = config.CACHE_DIR, str(folder or config.CACHE_DIR)
            try:
                return numba.cfunc("void(int64, int64, int64)", cache=folder is not None, error_model="numpy")(function)
            finally:
                config.CACHE_DIR = before

    return lambda: compiled().address


def specialise(function: Callable[..., Any], *, float32: Callable[..., Any], float64: Callable[..., Any]) -> None:
    """Have compiled loops that call `function(x)` run `float32(x)` or `float64(x)` instead, by the dtype of x.

    `x` is a number or an array. Without the JIT, loops call `function` itself.
    """
    from numba import types
    from numba.extending import overload

    by_dtype = {types.float32: float32, types.float64: float64}
    flags: Any = dict(FLAGS, fastmath={"contract"}, forceinline=True)  # a call left in a loop would keep it from vectorising

    @overload(function, strict=False, jit_options=flags)
    def choose(x: Any) -> Callable[..., Any] | None:
        return by_dtype.get(getattr(x, "dtype", x))


@cache
def vector_bytes() -> tuple[int, int]:
    """The width in bytes and the number of this machine's vector registers."""
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 32
    if features.get("avx2") and features.get("fma"):
        return 32, 16
    if "arm" in binding.get_process_triple() or "aarch64" in binding.get_process_triple():
        return 16, 32
    return 16, 16
