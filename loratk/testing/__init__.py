"""The contracts of loratk's parts as functions that raise AssertionError: for our own tests, and for those of plugins and backends."""

from .format import check_format
from .format_same import assert_same_adapter
from .format_states import format_states
from .init import check_init
from .kernels import check_example, check_kernel
from .layer_type import check_layer_type
from .merge_rule import check_merge_rule
from .method import check_method
from .store import check_store
from .vjp import check_vjp

__all__ = [
    "assert_same_adapter", "check_example", "check_format", "check_init", "check_kernel", "check_layer_type", "check_merge_rule",
    "check_method", "check_store", "check_vjp", "format_states",
]  # fmt: skip
