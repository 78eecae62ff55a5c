"""Merges in processes of their own, that are killed, interrupted, or have no room."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import loratk
from loratk.convert import items


def slow(seconds):
    """Have each piece of an array take a while, so that a merge can be met in the middle."""
    run = items.Work.run

    def slowly(self, start, stop):
        time.sleep(seconds)
        return run(self, start, stop)

    items.Work.run = slowly


def merge(base, adapter, out, limit, pause, force):
    """Merge, with files limited to so many bytes (0: not); what is raised goes to standard output."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    slow(pause)
    loratk.set_num_threads(2)
    print("begun", flush=True)
    try:
        done = loratk.merge(base, adapter, out, force=force, progress=lambda name, count: time.sleep(pause))
        print("resumed", done.resumed, flush=True)
    except loratk.LoratkError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)


def peak():
    """The most bytes of memory the process has had, without what the process had that started it."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))


def merge_measured(base, adapter, out):
    """The bytes that a merge takes at its peak, above what the process had before."""
    loratk.merge(*(Path(base).parent / name for name in ("small.safetensors", "small-adapter.safetensors", "small-out.safetensors")))
    before = peak()
    loratk.merge(base, adapter, out)
    print(peak() - before, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "measured":
        merge_measured(*sys.argv[2:])
    else:
        base, adapter, out, limit, pause, force = sys.argv[1:]
        merge(base, adapter, out, int(limit), float(pause), force == "force")
    os._exit(0)
