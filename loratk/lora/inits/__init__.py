"""Initialisations: how the two factors of an adapter start, from the weight, chance or data."""

from .base import Init, Start, Started

__all__ = ["Init", "Start", "Started"]
