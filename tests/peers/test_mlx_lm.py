"""mlx-lm loads the adapters that loratk writes, exactly the saved modules, and computes with them what the merged weights compute."""

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="mlx is not installed; these tests compare with mlx-lm")
tuner = pytest.importorskip("mlx_lm.tuner.utils", reason="mlx-lm is not installed; these tests compare with it")

from mlx.utils import tree_flatten  # noqa: E402
from mlx_lm.models import llama, qwen3_moe  # noqa: E402

from loratk.exchange import AdapterState, load_adapter, save_adapter  # noqa: E402
from loratk.exchange.bake import dora_update  # noqa: E402
from loratk.exchange.factors import dense_update  # noqa: E402
from loratk.exchange.transform import cast  # noqa: E402

SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1,
         "vocab_size": 10, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "head_dim": 4, "max_position_embeddings": 64}  # fmt: skip
MOE = {"num_experts": 3, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 6,
       "norm_topk_prob": True}  # fmt: skip
TOKENS = [[1, 5, 2, 9, 3]]
ATTENTION = [f"model.layers.{n}.self_attn.{part}_proj" for n in range(3) for part in "qv"]
CASES = {
    "all blocks": ("llama", ATTENTION, {"num_blocks": 3}),
    "the last block": ("llama", ATTENTION[4:], {"num_blocks": 3}),
    "the first block": ("llama", ATTENTION[:2], {}),
    "some, the embedding and the output": ("llama", [*ATTENTION[:3], "model.layers.1.mlp.down_proj", "model.embed_tokens", "lm_head"], {}),
    "experts": ("moe", [f"model.layers.{n}.mlp.switch_mlp.{part}_proj" for n in range(3) for part in ("up", "down")], {"num_blocks": 3}),
    "the router and experts of one block": ("moe", ["model.layers.1.mlp.gate", "model.layers.1.mlp.switch_mlp.gate_proj"], {}),
}


def tiny(kind):
    mx.random.seed(1)
    if kind == "llama":
        return llama.Model(llama.ModelArgs(model_type="llama", tie_word_embeddings=False, **SIZES))
    return qwen3_moe.Model(qwen3_moe.ModelArgs(model_type="qwen3_moe", tie_word_embeddings=False, **SIZES, **MOE))


def weights(model):
    return {path.removesuffix(".weight"): np.array(value) for path, value in tree_flatten(model.parameters()) if path.endswith(".weight")}


def adapter(model, paths, *, dora=False, mixed=False):
    tensors, modules = {}, {}
    rng = np.random.default_rng(2)
    for place, path in enumerate(paths):
        table, weight = "embed" in path, weights(model)[path]
        *stack, d, k = weight.shape if table else weight.swapaxes(-1, -2).shape
        rank = 2 + (place % 2 if mixed else 0)
        record = {"method": "dora" if dora else "lora", "layer_type": "embedding" if table else "linear", "shape": [d, k], "rank": rank,
                  "alpha": 3.0, "scaling": 3.0 / rank} | ({"experts": stack[0]} if stack else {})  # fmt: skip
        modules[path] = record
        tensors[f"{path}.lora_A"] = rng.standard_normal((*stack, d, rank)).astype(np.float32)
        tensors[f"{path}.lora_B"] = rng.standard_normal((*stack, rank, k)).astype(np.float32) * np.float32(0.3)
        if dora:
            tensors[f"{path}.magnitude"] = np.linalg.norm(weight, axis=1) * rng.uniform(0.5, 1.5, k).astype(np.float32)
    return AdapterState("default", {}, tensors, modules)


def merged(kind, state):
    """A model with the updates in its weights."""
    model = tiny(kind)
    for path, held in state.parameters().items():
        record, weight = state.modules[path], weights(model)[path].astype(np.float64)
        as_it_acts = weight if record["layer_type"] == "embedding" else weight.swapaxes(-1, -2)
        update = dora_update(as_it_acts, record, held) if "magnitude" in held else dense_update(record, held)
        new = as_it_acts + update
        new = new if record["layer_type"] == "embedding" else new.swapaxes(-1, -2)
        model.load_weights([(f"{path}.weight", mx.array(new.astype(np.float32)))], strict=False)
    return model


def adapted(model):
    return sorted({path.rpartition(".")[0] for path, _ in tree_flatten(model.parameters()) if path.endswith((".lora_a", ".lora_b"))})


@pytest.mark.parametrize("mixed", [False, True], ids=["one rank", "ranks"])
@pytest.mark.parametrize(("kind", "paths", "options"), CASES.values(), ids=CASES.keys())
def test_it_loads_exactly_the_saved_modules(kind, paths, options, mixed, tmp_path):
    state = adapter(tiny(kind), paths, mixed=mixed)
    save_adapter(tmp_path / "x", state, format="mlx", options=options)
    model = tuner.load_adapters(tiny(kind), str(tmp_path / "x"))
    assert adapted(model) == sorted(paths)
    got, want, without = (np.array(net(mx.array(TOKENS))) for net in (model, merged(kind, state), tiny(kind)))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert not np.allclose(got, without, atol=1e-3)


def test_dora(tmp_path):
    state = adapter(tiny("llama"), ATTENTION, dora=True)
    save_adapter(tmp_path / "x", state, format="mlx")
    got = np.array(tuner.load_adapters(tiny("llama"), str(tmp_path / "x"))(mx.array(TOKENS)))
    np.testing.assert_allclose(got, np.array(merged("llama", state)(mx.array(TOKENS))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_to_the_bit(dtype, tmp_path):
    state = cast([adapter(tiny("llama"), ATTENTION)], dtype)[0]
    save_adapter(tmp_path / "x", state, format="mlx")
    model = tuner.load_adapters(tiny("llama"), str(tmp_path / "x"))
    held = dict(tree_flatten(model.parameters()))
    for path in ATTENTION:
        assert held[f"{path}.lora_a"].dtype == getattr(mx, dtype)
        np.testing.assert_array_equal(
            np.array(held[f"{path}.lora_a"].astype(mx.float32)), state.tensors[f"{path}.lora_A"].astype(np.float32)
        )


def test_whole_modules(tmp_path):
    base = tiny("llama")
    rng = np.random.default_rng(0)
    record = {"method": "full", "orientation": "torch"}
    tensors = {f"{path}.weight": rng.standard_normal(weights(base)[path].shape).astype(np.float32) for path in ("model.norm", ATTENTION[0])}
    state = AdapterState("default", {}, tensors, {"model.norm": record, ATTENTION[0]: record})
    save_adapter(tmp_path / "x", state, format="mlx")
    model = tuner.load_adapters(tiny("llama"), str(tmp_path / "x"))
    for path in state.modules:
        np.testing.assert_array_equal(weights(model)[path], tensors[f"{path}.weight"])


@pytest.mark.parametrize("keys", [None, ["self_attn.k_proj", "mlp.up_proj"], ["lm_head", "model.layers.0.mlp.up_proj"]], ids=str)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_it_saves_is_what_we_read(kind, keys, tmp_path):
    """Tensors as its trainer saves them, config as save_config writes it; the output of the merged weights is that of its own layers."""
    from mlx_lm.utils import save_config

    model = tiny("llama")
    model.freeze()
    parameters = {"rank": 4, "scale": 2.5, "dropout": 0.0} | ({} if keys is None else {"keys": keys})
    tuner.linear_to_lora_layers(model, 2, parameters, use_dora=kind == "dora")
    rng = np.random.default_rng(1)
    for name, value in tree_flatten(model.trainable_parameters()):
        if name.endswith(".lora_b"):
            model.load_weights([(name, mx.array(rng.standard_normal(value.shape).astype(np.float32)))], strict=False)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    save_config({"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}, tmp_path / "adapter_config.json")
    state = load_adapter(tmp_path).states[0]
    assert sorted(state.modules) == adapted(model)
    got = np.array(merged("llama", state)(mx.array(TOKENS)))
    np.testing.assert_allclose(got, np.array(model(mx.array(TOKENS))), rtol=1e-3, atol=1e-5)
