"""Pictures of adapters, by matplotlib, which is loaded when one is drawn."""

from .adapters import draw
from .figure import check
from .interference import draw_interference

__all__ = ["check", "draw", "draw_interference"]
