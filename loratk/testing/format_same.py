"""Whether two adapters are the same: bit by bit, or what their factors make."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import Any

import numpy as np

from ..exchange.factors import dense_update
from ..exchange.state import AdapterState

TOLERANCE = 1e-6
"""Of an update that a format holds in another form, relative to the update."""
RECORD = ("method", "layer_type", "shape", "rank", "alpha", "scaling", "columns", "kernel", "groups", "experts", "orientation")


def assert_same_adapter(got: AdapterState, want: AdapterState, *, exact: bool = True, names: bool = True, marks: bool = True) -> None:
    """Raise AssertionError where one state is not the other: modules, parameters, bits and what their records say.

    A format that has one dtype only may give another one, as long as it holds the same numbers.

    Not `exact`: what the factors make, with scaling, may differ by TOLERANCE. Not `names`: modules are compared in their order.
    `marks`: whether bfloat16 must still be marked.
    """
    ours, theirs = list(want.modules), list(got.modules)
    assert len(ours) == len(theirs), f"modules: got {theirs}, want {ours}"
    assert not names or sorted(ours) == sorted(theirs), f"modules: got {sorted(theirs)}, want {sorted(ours)}"
    for module, other in [(module, module) for module in ours] if names else zip(ours, theirs, strict=True):
        record, found = want.modules[module], got.modules[other]
        held, arrays = want.parameters()[module], got.parameters()[other]
        if exact:
            for key in [key for key in RECORD if key in record]:
                assert _equal(found.get(key), record[key]), f"{module!r}: got {key} {found.get(key)!r}, want {record[key]!r}"
            _assert_equal_arrays(module, arrays, held)
            if marks:
                assert found.get("dtypes", {}) == record.get("dtypes", {}), f"{module!r}: got dtypes {found.get('dtypes')}"
        else:
            _assert_near(module, found, arrays, record, held)


def _equal(got: Any, want: Any) -> bool:
    """Whether two values of records are equal; numbers, as far as float32 holds them."""
    return isclose(got, want, rel_tol=1e-7) if isinstance(want, float) and isinstance(got, float | int) else bool(got == want)


def _assert_equal_arrays(module: str, got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    assert sorted(got) == sorted(want), f"{module!r}: got the parameters {sorted(got)}, want {sorted(want)}"
    for key, array in want.items():
        found = got[key]
        assert found.shape == array.shape, f"{module}.{key}: got shape {found.shape}, want {array.shape}"
        assert np.can_cast(array.dtype, found.dtype), f"{module}.{key}: got {found.dtype}, which cannot hold the numbers of {array.dtype}"
        assert found.tobytes() == array.astype(found.dtype).tobytes(), f"{module}.{key}: the values changed"


def _assert_near(
    module: str, found: Mapping[str, Any], got: Mapping[str, np.ndarray], record: Mapping[str, Any], want: Mapping[str, np.ndarray]
) -> None:
    """Equal updates, whatever their factors; magnitudes and biases with their scaling."""
    if "lora_A" in want:
        assert "lora_A" in got, f"{module!r}: got the parameters {sorted(got)}, want {sorted(want)}"
        ours, theirs = dense_update(record, want), dense_update(found, got)
        assert ours.shape == theirs.shape, f"{module!r}: the update has the shape {theirs.shape}, want {ours.shape}"
        off = float(np.linalg.norm(theirs - ours) / (np.linalg.norm(ours) or 1.0))
        assert off <= TOLERANCE, f"{module!r}: the update differs by {off:.3g} of it (allowed {TOLERANCE:g})"
    for key in want.keys() - {"lora_A", "lora_B", "lora_bias"} | ({"bias"} if "lora_bias" in want else set()):
        assert key in got or "lora_bias" in got, f"{module!r}: {key} is lost"
        old, new = (held[key] if key != "bias" else _bias(facts, held) for facts, held in ((record, want), (found, got)))
        np.testing.assert_allclose(new, old, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{module}.{key}")


def _bias(record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> np.ndarray:
    """What is added to the base's bias: the change itself, and lora_B's bias with its scaling."""
    return np.asarray(held.get("bias", 0.0) + held.get("lora_bias", 0.0) * record.get("scaling", 1.0))
