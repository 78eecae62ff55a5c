"""The contracts of loratk's parts as functions that raise AssertionError: for our own tests, and for those of plugins and backends."""

from .kernels import check_example, check_kernel
from .layer_type import check_layer_type
from .method import check_method
from .store import check_store
from .vjp import check_vjp

__all__ = ["check_example", "check_kernel", "check_layer_type", "check_method", "check_store", "check_vjp"]
