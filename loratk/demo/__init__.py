"""What adapters are for, shown on real data: a base classifier, two changed tasks, one adapter for each, and proofs."""

from .curves import draw
from .demo import SIZES, Demo, Proof, Row, make_folder
from .tasks import CHANGED, OWN, Task, make_tasks

__all__ = ["CHANGED", "OWN", "SIZES", "Demo", "Proof", "Row", "Task", "draw", "make_folder", "make_tasks"]
