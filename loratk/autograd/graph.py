"""Recording ops and running them backward."""

import itertools
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from ..errors import AnomalyError, GraphError
from ..kernels import Backend
from .modes import modes
from .vjps import JOINT_VJPS, VJPS, Pullback

if TYPE_CHECKING:
    from .tensor import Tensor

_count = itertools.count()


class Node:
    """An op that was run: for each argument that needs a gradient its source, its shape, and how to pull back to it.

    A source is the node that made the argument, or the tensor itself if it is a leaf. A node holds no value: what stays
    alive is what the pullbacks mention.
    """

    __slots__ = ("joint", "number", "op", "pullbacks", "shapes", "sources")

    sources: Sequence[Union["Node", "Tensor", None]] | None

    def __init__(self, op: str, sources: Sequence[Union["Node", "Tensor", None]], shapes: Sequence[Any]) -> None:
        self.op = op
        self.number = next(_count)
        self.sources = sources
        self.shapes = shapes
        self.pullbacks: Sequence[Pullback | None] = ()
        self.joint: Pullback | None = None

    def pull(self, g: Any) -> Sequence[Any]:
        """The gradients of the arguments, None for those that need none; frees what the node held."""
        if self.joint is not None:
            grads = self.joint(g)
        else:
            grads = [None if pull is None else pull(g) for pull in self.pullbacks]
        self.joint, self.pullbacks = None, ()
        return grads


def record(
    op: str, K: Backend, operands: Sequence[Any], needs: Sequence[bool], out: Any, args: Sequence[Any], options: dict[str, Any]
) -> Node:
    """The node of an op that has just been run. `needs` says of each operand whether it is a tensor that needs a gradient."""
    sources: list[Any] = []
    shapes: list[Any] = []
    for i, need in enumerate(needs):
        sources.append((operands[i]._node or operands[i]) if need else None)
        shapes.append(args[i].shape if need else None)
    node = Node(op, sources, shapes)
    joint = JOINT_VJPS.get(op)
    if joint is not None:
        node.joint = joint(K, tuple(needs), out, *args, **options)
        return node
    makers = VJPS.get(op)
    if makers is None:
        raise GraphError(f"The op {op!r} has no derivative, and an argument of it needs a gradient. Write one with defvjp({op!r}, ...).")
    pullbacks: list[Pullback | None] = []
    for i, need in enumerate(needs):
        if need:
            maker = makers[i] if i < len(makers) else makers[-1]
            if maker is None:
                raise GraphError(f"{_underived(op, i)}; detach() it first.")
            pullbacks.append(maker(K, out, *args, **options))
        else:
            pullbacks.append(None)
    node.pullbacks = pullbacks
    return node


def _underived(op: str, place: int) -> str:
    return f"The op {op!r} has no derivative for argument {place}, which needs a gradient"


def check_finite(K: Backend, array: Any, what: str) -> None:
    """Raise AnomalyError if the array holds a NaN or an infinity."""
    values = K.numpy(array)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = values[~np.isfinite(values)]
        raise AnomalyError(
            f"{what} is not finite: {bad.size} of {values.size} entries, the first {bad.flat[0]}, shape {values.shape}. "
            "It is the first such value, so its cause lies in that op or its inputs."
        )


def _reachable(root: Node) -> list[Node]:
    """All nodes below the root, the latest first: a node is always younger than its sources."""
    seen, stack = {root}, [root]
    while stack:
        node = stack.pop()
        if node.sources is None:
            raise GraphError(
                f"The graph below this tensor has been run backward already (first seen at op {node.op!r}), and what it held is freed. "
                "Run the forward pass again; to add up several losses, sum them and call backward() once."
            )
        for source in node.sources:
            if isinstance(source, Node) and source not in seen:
                seen.add(source)
                stack.append(source)
    return sorted(seen, key=attrgetter("number"), reverse=True)


def run_backward(K: Backend, root: Node, gradient: Any) -> None:
    """Add to `grad` of every leaf below the root. Cost: linear in the number of ops, no recursion."""
    gradients: dict[Node, Any] = {root: gradient}
    anomaly = modes.anomaly
    order = _reachable(root)
    if anomaly:
        check_finite(K, gradient, "The gradient passed to backward()")
    for node in order:
        g = gradients.pop(node)
        sources, node.sources = node.sources, None
        assert sources is not None
        for i, (source, shape, grad) in enumerate(zip(sources, node.shapes, node.pull(g), strict=True)):
            if source is None:
                continue
            if grad is None:
                raise GraphError(f"{_underived(node.op, i)}; detach() it first.")
            if grad.shape != shape:
                grad = K.sum_to(grad, shape=shape)
            if anomaly:
                check_finite(K, grad, f"The gradient of op {node.op!r} for its argument {i}")
            if isinstance(source, Node):
                known = gradients.get(source)
                gradients[source] = grad if known is None else K.add(known, grad)
            else:
                source.grad = grad if source.grad is None else K.add(source.grad, grad)
