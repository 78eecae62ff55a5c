"""What the algebra makes of PEFT's files computes what it says, in PEFT."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with it")
peft = pytest.importorskip("peft", reason="PEFT is not installed; these tests compare with it")

from peft_pairs import ALL, INDEX, LORA, Theirs, close, peft_load, peft_save  # noqa: E402

import loratk  # noqa: E402
from loratk.algebra import add  # noqa: E402
from loratk.io import write_safetensors  # noqa: E402

CONFIGS = {
    "plain": {"r": 3, "lora_alpha": 6},
    "rslora": {"r": 3, "lora_alpha": 6, "use_rslora": True},
    "patterns": {"r": 2, "lora_alpha": 3, "rank_pattern": {"fc1": 4}, "alpha_pattern": {"conv": 1}},
}
X = torch.from_numpy(INDEX)


def saved(path, seed, **config):
    """A PEFT model with random factors, saved."""
    torch.manual_seed(0)
    model = peft.get_peft_model(Theirs(), LORA(target_modules=list(ALL), **config))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) / 2)
    peft_save(model, path)
    return model


def fresh():
    torch.manual_seed(0)
    return Theirs()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_resized_adapter_without_loss_computes_the_same(name, tmp_path):
    model = saved(tmp_path / "a", 1, **CONFIGS[name])
    loratk.resize(tmp_path / "a", tmp_path / "b", error=1e-6)
    close(peft_load(fresh(), tmp_path / "b")(X), model(X).detach().numpy())


def deltas(model):
    """PEFT's own dense updates, (k, d)."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return {name: layer.get_delta_weight("default").detach().numpy() for name, layer in layers.items()}


def test_a_resized_adapter_is_the_best_of_its_rank(tmp_path):
    model = saved(tmp_path / "a", 1, **CONFIGS["patterns"])
    loratk.resize(tmp_path / "a", tmp_path / "b", rank=1)
    before, after = deltas(model), deltas(peft_load(fresh(), tmp_path / "b"))
    for name, whole in before.items():
        flat = whole.reshape(len(whole), -1) if "embedding" not in name else whole
        got = after[name].reshape(flat.shape)
        u, s, v = np.linalg.svd(flat.astype(np.float64), full_matrices=False)
        np.testing.assert_allclose(got, s[0] * np.outer(u[:, 0], v[0]), atol=1e-5, err_msg=name)


def test_a_sum_of_different_ranks_and_scalings_is_the_sum_of_the_deltas(tmp_path):
    one, two = saved(tmp_path / "a", 1, **CONFIGS["rslora"]), saved(tmp_path / "b", 2, **CONFIGS["patterns"])
    states = [loratk.load_adapter(tmp_path / name).states[0] for name in ("a", "b")]
    loratk.save_adapter(tmp_path / "c", add(states, [0.5, -2.0]).state, format="peft")
    first, second, got = deltas(one), deltas(two), deltas(peft_load(fresh(), tmp_path / "c"))
    for name, delta in got.items():
        np.testing.assert_allclose(delta, 0.5 * first[name] - 2 * second[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_what_is_extracted_from_a_merged_model_computes_the_same(tmp_path):
    model = saved(tmp_path / "a", 1, **CONFIGS["patterns"])
    want = model(X).detach().numpy()
    merged = model.merge_and_unload().state_dict()
    for name, arrays in (("base", fresh().state_dict()), ("tuned", merged)):
        write_safetensors(tmp_path / f"{name}.safetensors", {key: value.numpy() for key, value in arrays.items()}, {})
    paths = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    done = loratk.extract(*paths, tmp_path / "b", error=1e-5, to="peft", embeddings="lora", tables=["embedding"])
    assert {name: record["rank"] for name, record in done.state.modules.items()} == {
        "embedding": 2, "conv": 2, "block.fc1": 4, "block.fc2": 2, "head": 2,
    }  # fmt: skip
    close(peft_load(fresh(), tmp_path / "b")(X), want)
