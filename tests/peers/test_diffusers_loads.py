"""A UNet of diffusers with an adapter that loratk wrote has the same updates."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with diffusers on it")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed; these tests compare with it")
pytest.importorskip("peft", reason="PEFT is not installed; diffusers needs it for LoRA")

from loratk.exchange import AdapterState, portable, save_adapter  # noqa: E402
from loratk.exchange.factors import dense_update  # noqa: E402

WEIGHTS = "pytorch_lora_weights.safetensors"
ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
pytestmark = pytest.mark.filterwarnings("ignore")


def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=4, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=6, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), mid_block_type=None,
    )  # fmt: skip


def adapter(*, rslora=False, bias=False):
    """Several ranks and alphas on linear layers and a convolution."""
    rng, modules, tensors = np.random.default_rng(0), {}, {}
    for name, d, k, rank, alpha, more in (
        (f"{ATTENTION}.to_q", 4, 4, 2, 3.0, {}),
        (f"{ATTENTION}.to_k", 4, 4, 4, 3.0, {}),
        (f"{ATTENTION}.to_out.0", 4, 4, 2, 8.0, {}),
        ("unet.conv_in", 36, 4, 3, 1.0, {"layer_type": "conv2d", "kernel": [3, 3]}),
    ):
        scaling = alpha / rank**0.5 if rslora else alpha / rank
        modules[name] = {"method": "lora", "layer_type": "linear", "shape": [d, k], "rank": rank, "alpha": alpha, "scaling": scaling} | more
        tensors |= {f"{name}.lora_A": rng.standard_normal((d, rank)), f"{name}.lora_B": rng.standard_normal((rank, k))}
        tensors |= {f"{name}.lora_bias": rng.standard_normal(k)} if bias else {}
    return AdapterState("a", {}, {key: array.astype(np.float32) for key, array in tensors.items()}, modules)


@pytest.mark.parametrize("case", [{}, {"rslora": True}, {"bias": True}, {"portable": True}], ids=str)
def test_diffusers_loads_what_we_write(tmp_path, case):
    state = portable(adapter()) if "portable" in case else adapter(**case)
    save_adapter(tmp_path / WEIGHTS, state)
    model = unet()
    model.load_lora_adapter(str(tmp_path), weight_name=WEIGHTS, prefix="unet")
    layers = {f"unet.{path}": layer for path, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    assert layers.keys() == state.modules.keys()
    for module, layer in layers.items():
        record, held = state.modules[module], state.parameters()[module]
        matrix = dense_update(record, held)
        want = np.moveaxis(matrix.reshape(*record.get("kernel", []), -1, matrix.shape[1]), (-1, -2), (0, 1))
        (name,) = layer.lora_A
        got = layer.get_delta_weight(name).detach().numpy()
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        if case.get("bias"):
            np.testing.assert_array_equal(layer.lora_B[name].bias.detach().numpy(), held["lora_bias"])
