"""The contracts of loratk's parts as functions that raise AssertionError: for our own tests, and for those of plugins and backends."""

from .kernels import check_example, check_kernel
from .vjp import check_vjp

__all__ = ["check_example", "check_kernel", "check_vjp"]
