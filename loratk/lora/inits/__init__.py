"""Initialisations: how the two factors of an adapter start, from the weight, chance or data."""

from .base import Gatherer, Init, Seen, Start, Started

__all__ = ["Gatherer", "Init", "Seen", "Start", "Started"]
