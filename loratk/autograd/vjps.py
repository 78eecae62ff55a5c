"""The table of derivatives: for each op, how to pull a gradient back to its arguments (vector-Jacobian products).

A maker is called as `maker(K, out, *args, **options)`, K being the backend, out what the kernel returned, args the arrays.
It returns the pullback, a function from the gradient of the op's value to that of its argument, and the closure should
hold only what that function needs: what it does not mention is freed after the forward pass. A pullback need not undo
broadcasting; `backward` does so for all.
"""

from collections.abc import Callable
from typing import Any

from ..errors import PluginError

Pullback = Callable[[Any], Any]
Maker = Callable[..., Pullback]

VJPS: dict[str, tuple[Maker | None, ...]] = {}
JOINT_VJPS: dict[str, Maker] = {}


def _claim(op: str) -> None:
    if op in VJPS or op in JOINT_VJPS:
        raise PluginError(f"The op {op!r} has a derivative already; an op's derivative is written once.")


def defvjp(op: str, *makers: Maker | None) -> None:
    """Give an op its derivative: one maker per argument, in their order; None where there is none (such as an index).

    The last maker serves all further arguments. A maker runs only if its argument needs a gradient, so a frozen weight
    costs no product.
    """
    _claim(op)
    VJPS[op] = makers


def defvjp_joint(op: str, maker: Maker) -> None:
    """Give an op whose gradients share work one maker for all: `maker(K, needs, out, *args, **options)`.

    `needs` holds one bool per argument; the pullback returns a tuple with one gradient per argument (None where not needed).
    """
    _claim(op)
    JOINT_VJPS[op] = maker
