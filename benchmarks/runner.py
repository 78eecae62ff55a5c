"""Runs cases, each way in a process that lives as long as the runner."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from statistics import median
from typing import Any

from .case import WAYS, Case
from .cases import START_UP, named
from .processes import Remote, remote
from .result import result
from .start_up import start_up
from .timing import in_turns

MIB = 1 << 20
ALONE = ("ours", "floor by numpy")  # the ways that need no peer


class Runner:
    """Times cases, beside a peer or not, in that many turns."""

    def __init__(self, *, peer: str | None, turns: int, threads: int) -> None:
        self.peer, self.turns, self.threads = peer, turns, threads
        self._stack = ExitStack()
        self._workers: dict[tuple[str, int], Remote] = {}

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _worker(self, way: str, threads: int) -> Remote:
        if (way, threads) not in self._workers:
            self._workers[way, threads] = self._stack.enter_context(remote(threads))
        return self._workers[way, threads]

    def run(self, case: Case) -> tuple[dict[str, Any], str]:
        """The result of a case, and whose floor it holds where there were several."""
        threads = case.threads or self.threads
        ways = WAYS if self.peer and case.beside_peer else ALONE
        taken = in_turns(case, ways, {way: self._worker(way, threads) for way in ways}, turns=self.turns)
        floors = [way for way in ways if way.startswith("floor")]
        lowest = min(floors, key=lambda way: median(taken[way]))
        return result(case.name, threads, self.peer, taken, floor=lowest), lowest if len(floors) > 1 else ""

    def start_up(self) -> Iterator[dict[str, Any]]:
        """The results of starting with an empty cache of compiled kernels and with a full one."""
        found = start_up(named(START_UP), self.threads, peer=self.peer is not None, turns=max(2, self.turns // 2))
        for kind, taken in found.items():
            yield result(f"start-up-{kind}", self.threads, self.peer, taken)

    def memory(self, case: Case) -> str:
        """A line about what the weights and a step of a case take, each in a fresh process."""
        parts = []
        for way, name in [("ours", "loratk"), ("peft", "PEFT")][: 2 if self.peer else 1]:
            with remote(self.threads) as fresh:
                found = fresh.ask("memory", case, way)
            parts.append(f"{name} {found.weights / MIB:.2f} MiB of frozen weights, {found.step / MIB:.2f} MiB a step")
        with remote(self.threads) as fresh:
            parts.append(f"arrays that a step of loratk makes and drops: {fresh.ask('allocations', case) / MIB:.3f} MiB")
        return "; ".join(parts)

    def figures(self, case: Case) -> Mapping[str, float | None]:
        """Milliseconds for the picture."""
        found, _ = self.run(case)
        return {"ours": found["ours_ms"], "peft": found["peer_ms"], "floor": found["floor_ms"]}
