"""The derivative of a whole module by central difference."""

import numpy as np

from loratk.autograd import Tensor, no_grad


def tensors(value):
    """The tensors of a result, which may be nested in tuples."""
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in tensors(part)]


def check_gradients(module, inputs, options=None, *, entries=6, step=1e-5, tolerance=1e-6):
    """Compare the gradients of every input and parameter with difference quotients, at some entries of each.

    The scalar is a random weighting of all results. Float inputs are differentiated, others are passed on.
    """
    options, rng = options or {}, np.random.default_rng(99)
    module.to("reference")
    arrays = [np.array(x, copy=True) for x in inputs]
    states = {name: g.bit_generator.state for name, g in module.generators().items()}
    weights = []

    def loss(xs):
        for name, g in module.generators().items():
            g.bit_generator.state = states[name]
        results = tensors(module(*xs, **options))
        if not weights:
            weights.extend(rng.standard_normal(result.shape) for result in results)
        total = (results[0] * weights[0]).sum()
        for result, weight in zip(results[1:], weights[1:], strict=True):
            total = total + (result * weight).sum()
        return total

    leaves = [Tensor(x, requires_grad=True, backend="reference") if x.dtype.kind == "f" else x for x in arrays]
    module.zero_grad()
    loss(leaves).backward()
    places = [(f"input {i}", leaf.data, leaf.grad) for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    places += [(name, parameter.data, parameter.grad) for name, parameter in module.named_parameters()]
    for name, array, got in places:
        assert array.dtype == np.float64, name
        assert got is not None, f"{name} got no gradient"
        assert got.shape == array.shape, name
        for flat in rng.permutation(array.size)[:entries]:
            at = np.unravel_index(flat, array.shape)
            before, ends = array[at], []
            for sign in (1, -1):
                array[at] = before + sign * step
                with no_grad():
                    ends.append(loss(leaves).item())
            array[at] = before
            want = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(got[at], want, rtol=tolerance, atol=tolerance, err_msg=f"{name}{list(map(int, at))}")
