"""A result: the object that `--json` writes, and its line of the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from .timing import summary

HEAD = f"{'case':44}{'threads':>8}{'loratk':>10}{'floor':>10}{'x floor':>9}{'peer':>10}{'faster':>9}"
UNSTEADY = 0.3  # spread, as a share of the median, above which figures say more about the machine


def result(case: str, threads: int, peer: str | None, taken: Mapping[str, Sequence[float]], *, floor: str = "") -> dict[str, Any]:
    """Medians and, as the spread, distances between the quartiles; None for what was not timed. `floor` is the way that counts as it."""
    middle = {way: summary(times) for way, times in taken.items()}
    none = None, None
    ours, of_peer, of_floor = middle["ours"], middle.get("peft", none), middle.get(floor, none)
    return {
        "case": case,
        "threads": threads,
        "ours_ms": ours[0],
        "peer": peer if "peft" in taken else None,
        "peer_ms": of_peer[0],
        "floor_ms": of_floor[0],
        "spread": {"ours_ms": ours[1], "peer_ms": of_peer[1], "floor_ms": of_floor[1]},
    }


def line(result: Mapping[str, Any], floor_by: str = "") -> str:
    """One line of the table."""
    ours, floor, peer = result["ours_ms"], result["floor_ms"], result["peer_ms"]
    text = f"{result['case']:44}{result['threads']:8}{ours:10.3f}"
    text += f"{floor:10.3f}{ours / floor:8.2f}x" if floor else " " * 19
    text += f"{peer:10.3f}{peer / ours:8.2f}x" if peer else " " * 19
    shares = [spread / result[key] for key, spread in result["spread"].items() if spread is not None]
    return f"{text}  {floor_by}{'  UNSTEADY: is the machine busy?' if max(shares) > UNSTEADY else ''}".rstrip()
