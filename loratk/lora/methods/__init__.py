"""Methods: what the update of a (d, k) weight is, knowing only matrices. Every method works on every layer type."""

from .base import Call, Method

__all__ = ["Call", "Method"]
