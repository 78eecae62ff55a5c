"""The cap on the norm of updates, and the kinds of dropout: as kohya's sd-scripts have them."""

import numpy as np
import pytest
from layer_examples import LAYERS
from rank_problems import Pair, adapted, problem, train

from loratk import LoraConfig, LoraModel
from loratk.errors import ConfigError
from loratk.nn import MLP, Linear
from loratk.plugins import default_registry
from loratk.testing.layer_type import randomize

CAPPED = [name for name, method in default_registry().methods.items() if method.scales and method.proportional]


def scale_weight_norms(down, up, alpha, cap):
    """What sd-scripts' apply_max_norm_regularization does to one module, up (k, r) and down (r, d)."""
    norm = max(np.linalg.norm(up @ down * (alpha / len(down))), cap / 2)
    ratio = min(norm, cap) / norm
    return down * ratio**0.5, up * ratio**0.5, int(ratio != 1)


def test_it_is_kohyas():
    model = adapted({"rank": 3, "alpha": 2, "max_norm": 0.7}, np.float64)
    for layer, size in zip(model.layers.values(), (5.0, 0.01), strict=True):
        randomize(layer.adapters, 1)
        layer.adapter("default").block("").lora_B.assign(size * layer.adapter("default").block("").lora_B.numpy())
    parts = [layer.adapter("default").block("") for layer in model.layers.values()]
    wants = [scale_weight_norms(p.lora_A.numpy().T, p.lora_B.numpy().T, 2, 0.7) for p in parts]
    (controller,) = model.controllers()
    controller.after_update(0.1)
    for part, (down, up, _) in zip(parts, wants, strict=True):
        np.testing.assert_allclose(part.lora_A.numpy(), down.T, rtol=1e-12)
        np.testing.assert_allclose(part.lora_B.numpy(), up.T, rtol=1e-12)
    norms = [np.linalg.norm(part.delta(np.zeros((16, 12)))) for part in parts]
    record = controller.record()
    assert record["scaled_down"] == sum(want[2] for want in wants) == 1
    assert (record["largest_norm"], record["mean_norm"]) == pytest.approx((max(norms), sum(norms) / 2))
    assert record["largest_norm"] == pytest.approx(0.7)


@pytest.mark.parametrize("method", CAPPED)
@pytest.mark.parametrize("kind", default_registry().layer_types.values(), ids=lambda kind: kind.name)
def test_every_method_that_can_be_scaled_is_on_every_layer_type(kind, method):
    make, make_input = LAYERS[kind.module]
    model = LoraModel.adapt(make(np.float64), LoraConfig(rank=2, method=method, max_norm=0.25, targets="*"))
    layer = model.layers["root"]
    randomize(layer.adapters, 3)
    x, parts = make_input(np.float64), layer.adapter("default").blocks().values()
    with model.disabled():
        base = model(x).numpy()
    deltas = [part.delta(np.zeros((part.d, part.k))) for part in parts]
    capped = [controller for controller in model.controllers(100) if type(controller).__name__ == "MaxNorm"]
    capped[0].after_update(0.1)
    for part, delta in zip(parts, deltas, strict=True):
        norm = np.linalg.norm(delta)
        np.testing.assert_allclose(part.delta(np.zeros((part.d, part.k))), delta * min(1.0, 0.25 / norm), atol=1e-12)
    assert not np.allclose(model(x).numpy(), base)


def test_a_frozen_factor_stays_and_the_other_takes_all():
    model = LoraModel.adapt(MLP([6, 5], rng=0), LoraConfig(rank=2, max_norm=0.1, options={"freeze_A": True}))
    part = model.layers["0"].adapter("default").block("")
    part.lora_B.assign(np.ones((2, 5), np.float32))
    before = part.lora_A.numpy().copy()
    model.controllers()[-1].after_update(0.1)
    assert np.array_equal(part.lora_A.numpy(), before)
    assert np.linalg.norm(part.delta(np.zeros((6, 5), np.float32))) == pytest.approx(0.1, rel=1e-5)


def test_a_run_stays_under_its_cap_and_layers_may_differ():
    data = problem(3, 3)
    model = adapted({"rank": 4, "alpha": 4, "layer_pattern": {"left": {"max_norm": 0.5}}})
    train(model, data, 100)
    norms = {
        name: np.linalg.norm(layer.adapter("default").block("").delta(np.zeros((16, 12), np.float32)))
        for name, layer in model.layers.items()
    }
    assert norms["left"] == pytest.approx(0.5, rel=1e-4)
    assert norms["right"] > 1.5  # the change that it learns has the norm sqrt 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_norm": 0}, "max_norm must be a finite number above 0"),
        ({"max_norm": 1.0, "method": "dora"}, "the update of the method 'dora' cannot be scaled down"),
        (
            {"max_norm": 1.0, "init": "pissa"},
            "max_norm cannot scale down an update from which an init takes its first product, as 'pissa' does",
        ),
    ],
)
def test_what_cannot_be_capped_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        LoraConfig(**settings)


# Dropout


def kept_ranks(shape, chance, seed=0):
    """What each rank of each row is multiplied by, of a layer whose factors are the identity: (rows..., r)."""
    model = LoraModel.adapt(Linear(8, 8, rng=0, bias=False, dtype=np.float64), LoraConfig(rank=8, alpha=8, rank_dropout=chance, seed=seed))
    part = model.layers["root"].adapter("default").block("")
    part.lora_A.assign(np.eye(8))
    part.lora_B.assign(np.eye(8))
    x = np.ones((*shape, 8))
    with model.disabled():
        base = model(x).numpy()
    return model(x).numpy() - base


def test_rank_dropout_draws_for_each_row_and_rank_and_not_for_each_place_in_it():
    """sd-scripts: mask = rand(lx.size(0), dim) > p, the same for all tokens of a row; scale times 1 / (1 - p)."""
    kept = kept_ranks((2000, 3), 0.25)
    assert np.allclose(kept[:, :1], kept)
    np.testing.assert_allclose(np.unique(kept.round(6)), [0, 4 / 3], atol=1e-5)
    shares = (kept[:, 0] > 0).mean(axis=0)
    assert abs(shares - 0.75).max() < 5 * (0.75 * 0.25 / 2000) ** 0.5
    assert kept.mean() == pytest.approx(1, abs=0.02)  # what is expected stays
    pairs = np.corrcoef((kept[:, 0] > 0).T) - np.eye(8)
    assert abs(pairs).max() < 5 / 2000**0.5  # ranks fall independently


def test_module_dropout_leaves_layers_out_one_by_one():
    """sd-scripts: if rand(1) < p: return org_forwarded; what is left is not scaled."""
    base = Pair(np.float64)
    model = LoraModel.adapt(base, LoraConfig(rank=2, module_dropout=0.3))
    for i, layer in enumerate(model.layers.values()):
        randomize(layer.adapters, i)
    x = np.random.default_rng(0).standard_normal((1, 16))
    model.eval()
    full = model(x).numpy()
    with model.disabled():
        none = model(x).numpy()
    model.train()
    out = []
    for _ in range(1500):
        y = model(x).numpy()
        sides = [np.allclose(y[:, s], none[:, s]) for s in (slice(12), slice(12, 24))]
        assert all(gone or np.allclose(y[:, s], full[:, s]) for gone, s in zip(sides, (slice(12), slice(12, 24)), strict=True))
        out.append(sides)
    shares = np.mean(out, axis=0)
    assert abs(shares - 0.3).max() < 5 * (0.3 * 0.7 / 1500) ** 0.5
    assert abs(np.corrcoef(np.transpose(out))[0, 1]) < 5 / 1500**0.5
