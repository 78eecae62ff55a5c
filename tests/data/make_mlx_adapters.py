"""Make the folders mlx-lm-* beside this script with mlx-lm itself: `python make_mlx_adapters.py` (mlx[cpu] and mlx-lm; made with 0.32.2).

Each is what `mlx_lm.lora` leaves of a tiny model. In updates.safetensors is what its own layers make of it: the fused weight less
the weight, and for DoRA, which depends on it, the weight.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen3_moe
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import save_config

HERE = Path(__file__).parent
SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1,
         "vocab_size": 10, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "head_dim": 4, "max_position_embeddings": 64}  # fmt: skip
MOE = {"num_experts": 3, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 6,
       "norm_topk_prob": True}  # fmt: skip
LORA = {"rank": 2, "scale": 1.5, "dropout": 0.0}


def tiny(kind="llama"):
    mx.random.seed(1)
    if kind == "llama":
        return llama.Model(llama.ModelArgs(model_type="llama", tie_word_embeddings=False, **SIZES))
    return qwen3_moe.Model(qwen3_moe.ModelArgs(model_type="qwen3_moe", tie_word_embeddings=False, **SIZES, **MOE))


def make(name, kind, fine_tune_type, num_layers, parameters, dtype=mx.float32):
    model = tiny(kind)
    model.freeze()
    linear_to_lora_layers(model, num_layers, parameters, use_dora=fine_tune_type == "dora")
    rng = np.random.default_rng(4)
    for path, value in tree_flatten(model.trainable_parameters()):
        if not path.endswith(".m"):
            model.load_weights([(path, mx.array(rng.standard_normal(value.shape).astype(np.float32)).astype(dtype))], strict=False)
    folder = HERE / f"mlx-lm-{name}"
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    args = {"model": "tiny", "train": True, "fine_tune_type": fine_tune_type, "num_layers": num_layers, "lora_parameters": parameters}
    save_config(args, folder / "adapter_config.json")
    updates = {}
    for path, module in model.named_modules():
        if hasattr(module, "fuse") and hasattr(module, "lora_a"):
            module.lora_a, module.lora_b = (factor.astype(mx.float32) for factor in (module.lora_a, module.lora_b))
            inner = module.linear if hasattr(module, "linear") else module.embedding
            updates[path] = module.fuse().weight - inner.weight
            updates |= {f"{path}.weight": inner.weight} if fine_tune_type == "dora" else {}
    mx.save_safetensors(str(folder / "updates.safetensors"), updates)
    print(folder, json.dumps(args), list(updates))


if __name__ == "__main__":
    make("lora", "llama", "lora", 2, LORA | {"keys": ["self_attn.q_proj", "mlp.down_proj", "model.embed_tokens"]})
    make("bfloat16", "llama", "lora", -1, LORA | {"keys": ["self_attn.v_proj"]}, mx.bfloat16)
    make("dora", "llama", "dora", 1, LORA)
    make("experts", "qwen3_moe", "lora", 1, LORA | {"keys": ["mlp.switch_mlp.up_proj", "mlp.gate"]})
