"""Arithmetic on adapters, from files alone and in factor space: never a (d, k) matrix where small ones suffice.

What is named here is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .certificate import Certificate
    from .combining import combine
    from .conversion import lora_of
    from .extraction import extract
    from .ranks import Rule
    from .resizing import resize
    from .result import Result
    from .rules import Columns, DenseRule, FactorRule, MergeRule
    from .subspace import orthogonalise, project
    from .sums import add, average, negate, scale, subtract
    from .truncation import truncate

_HOME = {
    "certificate": "Certificate",
    "combining": "combine",
    "conversion": "lora_of",
    "extraction": "extract",
    "ranks": "Rule",
    "resizing": "resize",
    "result": "Result",
    "rules": "Columns DenseRule FactorRule MergeRule",
    "subspace": "orthogonalise project",
    "sums": "add average negate scale subtract",
    "truncation": "truncate",
}
_WHERE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [
    "Certificate", "Columns", "DenseRule", "FactorRule", "MergeRule", "Result", "Rule", "add", "average", "combine", "extract", "lora_of",
    "negate", "orthogonalise", "project", "resize", "scale", "subtract", "truncate",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'loratk.algebra' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
