"""What a module adds to its weight, whatever its method: values that PEFT computed, and definitions written out."""

from pathlib import Path

import numpy as np
import pytest
from algebra_states import Base, beside, module, state

from loratk import load_adapter
from loratk.algebra.interference import compare
from loratk.algebra.updates import Updates
from loratk.errors import ConfigError
from loratk.exchange import plain_lora
from loratk.plugins import default_registry

PEFT = Path(__file__).parent.parent / "data/peft"


def of(adapter, name, base=None, **options):
    return Updates(adapter, default_registry(), base).of(name, **options)


def matrix(update):
    """It as a matrix, of groups side by side."""
    return np.hstack([(part.u * part.s) @ part.v for part in update.parts])


@pytest.mark.parametrize("name", ["adalora", "vera", "loha", "lokr"])
def test_methods_with_factors_are_as_peft_computes_them(name):
    (held,) = load_adapter(PEFT / name).states
    with np.load(PEFT / "outputs.npz") as outputs:
        want = outputs[f"{name}.lin"].T
    np.testing.assert_allclose(matrix(of(held, "lin")), want, atol=2e-6 * np.abs(want).max())


def test_a_convolution_of_another_method():
    (held,) = load_adapter(PEFT / "loha").states
    with np.load(PEFT / "outputs.npz") as outputs:
        want = np.moveaxis(outputs["loha.c1"], (0, 1), (2, 1)).reshape(18, 8)  # the window first, then channels; outputs last
    np.testing.assert_allclose(matrix(of(held, "c1")), want, atol=2e-6 * np.abs(want).max())


def test_another_method_and_its_plain_lora_are_the_same():
    """VeRA of linear layers does not say how many inputs it has: the other adapter does."""
    for name in ("adalora", "vera", "loha"):
        (held,) = load_adapter(PEFT / name).states
        (plain,), _ = plain_lora([held])
        (found,) = compare([held, plain]).pairs
        for module_ in found.modules:
            assert module_.compared, module_.faults
            assert module_.sum.cosine == pytest.approx(1, abs=1e-6)
            assert max(module_.inputs.angles + module_.outputs.angles) < 1e-3
        assert "root" not in [module_.name for module_ in found.modules]  # VeRA's shared matrices


def test_ia3_needs_the_base_and_is_its_definition():
    w = np.random.default_rng(0).standard_normal((6, 5))
    factors = np.linspace(0.5, 2, 5)
    held = state({"m": ({"method": "ia3", "orientation": "torch"}, {"ia3_l": factors[:, None]})})
    np.testing.assert_allclose(matrix(of(held, "m", Base(m=w))), w * (factors - 1))
    with pytest.raises(ConfigError, match="depends on the base"):
        of(held, "m")
    with pytest.raises(ConfigError, match="has no module of that name"):
        of(held, "m", Base(other=w))
    assert Updates(held, default_registry()).needs_base("m")


def test_whole_modules_and_differences():
    rng = np.random.default_rng(1)
    w, kernel = rng.standard_normal((6, 5)), rng.standard_normal((4, 3, 2, 2))
    facts = {"orientation": "torch"}
    held = state({
        "m": ({"method": "full", **facts}, {"weight": w.T + 1}),
        "c": ({"method": "diff", **facts}, {"weight": kernel, "bias": np.ones(4)}),
        "norm": ({"method": "diff", **facts}, {"weight": np.ones(5)}),
    })  # fmt: skip
    np.testing.assert_allclose(matrix(of(held, "m", Base(m=w))), np.ones((6, 5)), atol=1e-12)
    np.testing.assert_allclose(matrix(of(held, "c")), kernel.transpose(2, 3, 1, 0).reshape(12, 4), atol=1e-12)
    with pytest.raises(ConfigError, match="changes no weight of two axes, only 'weight'"):
        of(held, "norm")
    with pytest.raises(ConfigError, match="depends on the base"):
        of(held, "m")
    assert Updates(held, default_registry()).biases() == ["c"]


def test_a_block_of_a_fused_projection_takes_its_columns_of_the_base():
    w = np.random.default_rng(2).standard_normal((6, 12))
    record, held = module(columns=[4, 8])
    magnitude = np.linalg.norm(w[:, 4:8], axis=0) * 2
    dora = state({"qkv.k": (record | {"method": "dora"}, held | {"magnitude": magnitude})})
    moved = w[:, 4:8] + record["scaling"] * held["lora_A"] @ held["lora_B"]
    want = moved * magnitude / np.linalg.norm(moved, axis=0) - w[:, 4:8]
    np.testing.assert_allclose(matrix(of(dora, "qkv.k", Base(qkv=w))), want, atol=1e-12)


def test_a_method_that_is_trained_here_is_asked_for_its_own_update():
    """A plugin's method whose factors are named as LoRA's, but mean something else."""
    registry = default_registry()

    class Twice(type(registry.methods["lora"])):
        name = "twice"

        def delta(self, K, weight, parameters, scaling):
            return 2 * super().delta(K, weight, parameters, scaling)

    own = type(registry)(**{**vars(registry), "methods": {**registry.methods, "twice": Twice()}})
    record, held = module()
    got = Updates(state({"m": (record | {"method": "twice"}, held)}), own).of("m")
    np.testing.assert_allclose(matrix(got), 2 * record["scaling"] * held["lora_A"] @ held["lora_B"], atol=1e-12)


def test_a_bias_is_no_part_of_it():
    plain, more = module(), beside(module(), bias=np.ones(4), lora_bias=np.ones(4))
    assert of(state({"m": more}), "m").norm == of(state({"m": plain}), "m").norm
