"""What a call has chosen that modules answer by, without an argument through all of their `forward`.

A model that lets a call choose, such as which adapters it uses, sets `variant` for the time of the call. It belongs to the context
of the caller, as every context variable does, so calls in several threads do not see each other's.
"""

from collections.abc import Hashable, Mapping
from contextvars import ContextVar
from typing import Any


class Variant:
    """What was chosen, by who it is for, and a key: modules answer alike for two variants of one key. Never changed once made."""

    __slots__ = ("chosen", "key")

    def __init__(self, chosen: Mapping[Any, Any]) -> None:
        self.chosen = chosen
        self.key: Hashable = tuple((who, choice.key) for who, choice in chosen.items())


variant: ContextVar[Variant | None] = ContextVar("loratk.variant", default=None)
