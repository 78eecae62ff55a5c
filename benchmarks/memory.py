"""What a step takes beyond the weights: the peak of the memory the process really holds, as the system counts it.

The process has taken steps on a few rows first, so that libraries are loaded, weights packed and the optimiser's moments there; the peak is
then set back (Linux), and steps on all rows are taken. Peak after minus memory before is what the step takes: activations,
gradients and scratch space, whichever allocator they come from. Elsewhere the peak can't be set back and is compared with
the peak before.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from .case import Case

FEW = 64
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Bytes of the frozen weights, packed copies included, and of a step beyond what was there before it."""

    weights: int
    step: int


def _resident(peak: bool) -> int:
    """Bytes of memory held now, or the most held since the peak was set back."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:" if peak else "VmRSS:"))
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory(case: Case, way: str) -> Memory:
    """The memory of a case by "ours" or "peft"; to be asked of a fresh process."""
    import gc

    model, make = (case.ours_model(), case.ours_step) if way == "ours" else (case.peft_model(), case.peft_step)
    few, step = make(model, min(FEW, case.rows // 2)), make(model, case.rows)
    for _ in range(3):
        few()
    gc.collect()
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    before = _resident(peak=False)
    for _ in range(3):
        step()
    taken = _resident(peak=True) - before
    if way == "ours":
        frozen = [p for _, p in model.named_parameters() if not p.requires_grad]
        weights = sum(p.data.nbytes + (p.handle().nbytes if p.frozen and p.ndim == 2 else 0) for p in frozen)
    else:
        weights = sum(4 * p.numel() for p in model.parameters() if not p.requires_grad)
    return Memory(weights, taken)
