"""Golden files by diffusers and PEFT: `pip install torch==2.13.0 diffusers==0.42.1 peft safetensors`, then `python make_diffusers.py`.

A tiny UNet with a LoRA of PEFT is saved by `StableDiffusionPipeline.save_lora_weights`, with and without `lora_adapter_metadata`. For each
module `want.<path>` is PEFT's own update (torch's order); the tests take these out before they read the file.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
CASES = {
    "patterns": {"r": 2, "lora_alpha": 3, "rank_pattern": {"to_q": 4}, "alpha_pattern": {"to_k": 8, "conv_in": 1}},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "dora": {"r": 2, "lora_alpha": 2, "use_dora": True},
    "bias": {"r": 2, "lora_alpha": 4, "lora_bias": True},
}


def unet():
    return UNet2DConditionModel(
        sample_size=4, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=6, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), mid_block_type=None,
    )  # fmt: skip


def make(name):
    torch.manual_seed(0)
    model = unet()
    model.add_adapter(
        LoraConfig(target_modules=[f"{ATTENTION}.to_{part}" for part in "qkv"] + [f"{ATTENTION}.to_out.0", "conv_in"], **CASES[name])
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key and "magnitude" not in key:
                parameter.copy_(torch.randn_like(parameter))
    layers = {path: module for path, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    with TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(model),
            unet_lora_adapter_metadata=model.peft_config["default"].to_dict() | {"peft_type": "LORA", "task_type": None},
        )
        path = Path(folder) / "pytorch_lora_weights.safetensors"
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path) | {f"want.unet.{key}": layer.get_delta_weight("default") for key, layer in layers.items()}
    tensors |= {f"base.{key}": layer.base_layer.weight for key, layer in layers.items() if name == "dora"}
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, HERE / f"{name}.safetensors", metadata)
    print(name, list(tensors), list(metadata))


if __name__ == "__main__":
    for name in CASES:
        make(name)
