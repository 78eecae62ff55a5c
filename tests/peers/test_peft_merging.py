"""The merge rules beside PEFT's combinations of adapters: the same where PEFT is right, and the true deltas where it is not."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with it")
peft = pytest.importorskip("peft", reason="PEFT is not installed; these tests compare with it")

from torch import nn  # noqa: E402

from loratk import combine, load_adapter  # noqa: E402
from loratk.exchange.factors import dense_update  # noqa: E402

NAMES, WEIGHTS = ("default", "second", "third"), (0.7, 1.0, 0.4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.out, self.conv, self.table = nn.Linear(14, 10), nn.Linear(10, 6), nn.Conv2d(3, 8, 3), nn.Embedding(12, 7)

    def forward(self, x):
        return self.out(self.fc(x))


@pytest.fixture
def peft_model(tmp_path):
    """Makes a PEFT model of adapters with random factors, and their states as loratk reads them from PEFT's files."""

    def make(*configs):
        torch.manual_seed(0)
        with warnings.catch_warnings(action="ignore"):
            model = peft.get_peft_model(Net(), configs[0])
            for name, config in zip(NAMES[1:], configs[1:], strict=False):
                model.add_adapter(name, config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(torch.randn(parameter.shape))
        with warnings.catch_warnings(action="ignore"):  # PEFT takes a lora_bias for a broken factor
            model.save_pretrained(tmp_path / "saved")
        folders = [tmp_path / "saved" / ("" if name == "default" else name) for name in NAMES[: len(configs)]]
        return model, [load_adapter(folder).states[0] for folder in folders]

    return make


def config(rank=4, alpha=None, targets=("fc", "out", "conv"), **more):
    return peft.LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(targets), **more)


def peft_delta(model, module, name):
    """What an adapter of PEFT adds to a weight, as a matrix (d, k)."""
    delta = dict(model.named_modules())[f"base_model.model.{module}"].get_delta_weight(name).detach().double().numpy()
    return np.moveaxis(delta, (0, 1), (-1, -2)).reshape(-1, len(delta)) if module != "table" else delta


def ours(result, module):
    return dense_update(result.state.modules[module], result.state.parameters()[module])


def close(got, want, tolerance=2e-5):
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


def combined(model, kind, rank, **given):
    with warnings.catch_warnings(action="ignore"):
        names = [name for name in NAMES if name in model.peft_config]
        model.add_weighted_adapter(names, list(WEIGHTS[: len(names)]), "new", combination_type=kind, svd_rank=rank, **given)


PAIRS = {
    "svd": ("svd", {}, {}),
    "ties_svd": ("ties", {"density": 0.5}, {"density": 0.5}),
    "ties_svd by frequency": ("ties", {"density": 0.5, "majority_sign_method": "frequency"}, {"density": 0.5, "elect": "frequency"}),
    "dare_linear_svd": ("dare", {"density": 1.0}, {"density": 1.0}),
    "dare_ties_svd": ("dare_ties", {"density": 1.0}, {"density": 1.0}),
    "magnitude_prune_svd": ("magnitude_prune", {"density": 0.5}, {"density": 0.5}),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("rank", [3, 6])
def test_rules_on_dense_deltas_are_those_of_peft(peft_model, pair, rank):
    rule, theirs, options = PAIRS[pair]
    model, states = peft_model(config(alpha=8), config(alpha=8), config(alpha=8))
    combined(model, pair.split()[0], rank, **theirs)
    got = combine(states, WEIGHTS, rule=rule, options=options, rank=rank)
    for module in ("fc", "out"):
        close(ours(got, module), peft_delta(model, module, "new"))


@pytest.mark.parametrize("rslora", [False, True])
def test_the_sum_is_that_of_what_peft_adds_whatever_the_scalings(peft_model, rslora):
    """In convolutions and embeddings too."""
    targets = ("fc", "out", "conv", "table")
    model, states = peft_model(config(4, 8, targets, use_rslora=rslora), config(2, 3, targets, rank_pattern={"out": 3}))
    for rule in ("sum", "svd"):
        got = combine(states, WEIGHTS[:2], rule=rule)
        for module in targets:
            want = sum(weight * peft_delta(model, module, name) for name, weight in zip(NAMES, WEIGHTS[:2], strict=False))
            close(ours(got, module), want)


def test_the_sum_is_what_peft_s_cat_computes(peft_model):
    model, states = peft_model(config(4, 8), config(2, 3))
    combined(model, "cat", None)
    got = combine(states, WEIGHTS[:2])
    for module in ("fc", "out", "conv"):
        close(ours(got, module), peft_delta(model, module, "new"))


# What PEFT gets wrong


def test_one_adapter_at_half_weight_is_half_of_it_under_every_rule(peft_model):
    model, states = peft_model(config(4, 8))
    for rule in ("sum", "svd", "ties", "dare", "dare_ties", "magnitude_prune", "della", "della_linear"):
        got = combine(states, [0.5], rule=rule, options={} if rule in ("sum", "svd") else {"density": 1.0})
        close(ours(got, "fc"), 0.5 * peft_delta(model, "fc", "default"))


def test_there_are_no_cross_terms(peft_model):
    """PEFT's `linear` is no sum of updates; loratk's is."""
    model, states = peft_model(config(), config())
    combined(model, "linear", None)
    want = 0.7 * peft_delta(model, "fc", "default") + peft_delta(model, "fc", "second")
    assert np.linalg.norm(peft_delta(model, "fc", "new") - want) > 0.5 * np.linalg.norm(want)
    close(ours(combine(states, WEIGHTS[:2], rule="linear", options={"normalize": False}), "fc"), want)


def test_rslora_is_not_scaled_once_more(peft_model):
    """PEFT's new adapter is rank-stabilised too, and so sqrt(rank) too large; a file of loratk's result in PEFT is right."""
    model, states = peft_model(config(4, 4, use_rslora=True), config(4, 4, use_rslora=True))
    combined(model, "svd", 8)
    want = 0.7 * peft_delta(model, "fc", "default") + peft_delta(model, "fc", "second")
    assert np.linalg.norm(peft_delta(model, "fc", "new")) > 2 * np.linalg.norm(want)
    close(ours(combine(states, WEIGHTS[:2], rule="svd", rank=8), "fc"), want)


@pytest.mark.parametrize("rule", ["sum", "ties"])
def test_peft_computes_the_same_with_our_result(peft_model, tmp_path, rule):
    from loratk import save_adapter

    model, states = peft_model(config(4, 8, use_rslora=True), config(2, 3, rank_pattern={"out": 3}))
    got = combine(states, WEIGHTS[:2], rule=rule, rank=5, name="default")
    save_adapter(tmp_path / "ours", got.state, format="peft")
    with warnings.catch_warnings(action="ignore"):
        model.load_adapter(tmp_path / "ours", adapter_name="ours")
    for module in ("fc", "out", "conv"):
        close(peft_delta(model, module, "ours"), ours(got, module))


def test_lora_bias_counts_once(peft_model):
    model, states = peft_model(config(4, 8, ("fc",), lora_bias=True), config(2, 3, ("fc",), lora_bias=True))
    layer = dict(model.named_modules())["base_model.model.fc"]
    want = sum(w * layer.scaling[name] * layer.lora_B[name].bias.detach().numpy() for name, w in zip(NAMES, WEIGHTS[:2], strict=False))
    got = combine(states, WEIGHTS[:2])
    close(got.state.tensors["fc.lora_bias"], want)
