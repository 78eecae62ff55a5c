"""PEFT takes the adapters that loratk writes, loratk takes those that PEFT writes, and both then compute the same."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with it")
peft = pytest.importorskip("peft", reason="PEFT is not installed; these tests compare with it")

from peft_pairs import ALL, INDEX, LORA, Ours, Theirs, TorchBlock, close, moved, output_first, peft_load, peft_save, random_model  # noqa: E402
from torch import nn  # noqa: E402

from loratk import AdapterState, LoraConfig, LoraModel, load_adapter, save_adapter  # noqa: E402
from loratk.convert import export_merged  # noqa: E402

# PEFT loads what loratk writes

EXPORTS = {
    "linear": LoraConfig(rank=2, alpha=3),
    "every layer": LoraConfig(rank=2, alpha=3, targets=ALL),
    "one of several": LoraConfig(rank=2, alpha=3, targets="fc2"),
    "dora": LoraConfig(rank=2, alpha=3, targets=ALL, method="dora"),
    "rslora": LoraConfig(rank=3, alpha=3, targets=ALL, rslora=True),
    "patterns": LoraConfig(rank=2, alpha=3, targets=ALL, rank_pattern={"*.fc?": 4, "conv": 3}, alpha_pattern={"head": 1, "fc1": 0.7}),
    "rslora and patterns": LoraConfig(rank=2, alpha=3, rslora=True, rank_pattern={"fc1": 4}, alpha_pattern={"head": 1}),
    "dora and patterns": LoraConfig(rank=2, alpha=3, method="dora", rank_pattern={"fc1": 4}, alpha_pattern={"head": 1}),
    "bias of adapted layers": LoraConfig(rank=2, alpha=3, targets=("fc1", "conv", "fc2"), bias="lora_only"),
    "every bias": LoraConfig(rank=2, alpha=3, targets=("fc1",), bias="all"),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_peft_computes_the_same_with_our_files(name, tmp_path):
    model = random_model(EXPORTS[name])
    model.save(tmp_path / "x", format="peft")
    theirs = peft_load(Theirs(), tmp_path / "x")
    close(theirs(torch.from_numpy(INDEX)), model(INDEX).numpy())
    wrapped = {path for path, module in theirs.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert wrapped == {layer for layer, held in model.layers.items() if held.adapter("default").blocks()}


def test_several_adapters_go_to_peft(tmp_path):
    model = random_model(LoraConfig(rank=2, alpha=3, targets="fc1"))
    model.add_adapter("lora", LoraConfig(rank=1, alpha=4, targets=("conv", "fc2")))
    rng = np.random.default_rng(4)
    model.load_state({name: rng.standard_normal(array.shape).astype(np.float32) for name, array in model.state("lora").items()}, "lora")
    model.save(tmp_path / "x", format="peft")
    theirs = peft_load(Theirs(), tmp_path / "x")
    with warnings.catch_warnings(action="ignore"):  # PEFT likes no adapter named "lora"
        theirs.load_adapter(tmp_path / "x" / "lora", adapter_name="lora")
    for name in ("default", "lora"):
        theirs.set_adapter(name)
        model.set_active(name)
        close(theirs(torch.from_numpy(INDEX)), model(INDEX).numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_goes_to_peft(dtype, tmp_path):
    from loratk.exchange.transform import cast

    random_model(LoraConfig(rank=2, alpha=3, targets=ALL)).save(tmp_path / "x", format="peft")
    states = cast(load_adapter(tmp_path / "x").states, dtype)
    save_adapter(tmp_path / "y", states, format="peft")
    theirs = peft_load(Theirs(), tmp_path / "y", autocast_adapter_dtype=False)
    ours = LoraModel.from_file(Ours(), tmp_path / "y")
    close(theirs(torch.from_numpy(INDEX)), ours(INDEX).numpy())
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file(tmp_path / "y" / "adapter_model.safetensors").values()} == {getattr(torch, dtype)}


def test_lora_bias_and_whole_modules_go_to_peft(tmp_path):
    config = LORA(r=2, lora_alpha=3, target_modules=["fc1", "conv"], lora_bias=True, modules_to_save=["head"])
    model = moved(peft.get_peft_model(Theirs(), config))
    peft_save(model, tmp_path / "x")
    save_adapter(tmp_path / "y", load_adapter(tmp_path / "x").states, format="peft")
    close(peft_load(Theirs(), tmp_path / "y")(torch.from_numpy(INDEX)), model(torch.from_numpy(INDEX)))


# loratk loads what PEFT writes

IMPORTS = {
    "linear": LORA(r=2, lora_alpha=3, target_modules="all-linear"),
    "every layer": LORA(r=2, lora_alpha=3, target_modules=list(ALL)),
    "dora": LORA(r=2, lora_alpha=3, target_modules=list(ALL), use_dora=True),
    "rslora": LORA(r=3, lora_alpha=3, target_modules=list(ALL), use_rslora=True),
    "patterns": LORA(
        r=2, lora_alpha=3, target_modules=r".*(fc\d|conv|head)", rank_pattern={r"fc\d": 4}, alpha_pattern={"^head": 1, "fc1|conv": 5}
    ),
    "lora_bias": LORA(r=2, lora_alpha=3, target_modules=["fc1", "conv"], lora_bias=True),
    "bias of adapted layers": LORA(r=2, lora_alpha=3, target_modules=["fc1", "conv", "fc2"], bias="lora_only"),
    "every bias": LORA(r=2, lora_alpha=3, target_modules=["fc1"], bias="all"),
    "excluded": LORA(r=2, lora_alpha=3, target_modules=["fc1", "fc2", "head"], exclude_modules=["block.fc2"]),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_loratk_computes_the_same_with_peft_s_files(name, tmp_path):
    model = moved(peft.get_peft_model(Theirs(), IMPORTS[name]))
    peft_save(model, tmp_path / "x")
    how = {"allow_missing": ["fc2"]} if name == "excluded" else {}
    close(LoraModel.from_file(Ours(), tmp_path / "x", **how)(INDEX).numpy(), model(torch.from_numpy(INDEX)))


def test_several_adapters_of_peft(tmp_path):
    model = peft.get_peft_model(Theirs(), LORA(r=2, target_modules=["fc1"]))
    with warnings.catch_warnings(action="ignore"):  # PEFT likes no adapter named "lora"
        model.add_adapter("lora", LORA(r=3, target_modules=["fc2", "conv"]))
    model.add_adapter("default2", LORA(r=1, target_modules=["head"]))
    for name in model.peft_config:
        model.set_adapter(name)
        moved(model)
    peft_save(model, tmp_path / "x")
    ours = LoraModel(Ours())
    assert sorted(ours.load(tmp_path / "x")) == sorted(model.peft_config)
    for name in model.peft_config:
        model.set_adapter(name)
        ours.set_active(name)
        close(ours(INDEX).numpy(), model(torch.from_numpy(INDEX)))


def test_bfloat16_of_peft(tmp_path):
    model = moved(peft.get_peft_model(Theirs(), LORA(r=2, target_modules=list(ALL))))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.bfloat16()
    peft_save(model, tmp_path / "x")
    close(LoraModel.from_file(Ours(), tmp_path / "x")(INDEX).numpy(), peft_load(Theirs(), tmp_path / "x")(torch.from_numpy(INDEX)))
    save_adapter(tmp_path / "y", load_adapter(tmp_path / "x").states, format="peft")
    assert (tmp_path / "y" / "adapter_model.safetensors").read_bytes() == (tmp_path / "x" / "adapter_model.safetensors").read_bytes()


def test_whole_modules_of_peft_in_merged_weights(tmp_path):
    from loratk.io import SafetensorsStore

    config = LORA(r=2, lora_alpha=3, target_modules=["fc1", "conv"], modules_to_save=["head"], bias="lora_only")
    model = moved(peft.get_peft_model(Theirs(), config))
    peft_save(model, tmp_path / "x")
    SafetensorsStore().write(tmp_path / "base.safetensors", output_first(Ours().state_dict()), {"format": "pt"})
    export_merged(tmp_path / "x", tmp_path / "base.safetensors", tmp_path / "merged.safetensors")
    arrays = SafetensorsStore().read(tmp_path / "merged.safetensors").arrays
    net = Theirs()
    net.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    close(net(torch.from_numpy(INDEX)), model(torch.from_numpy(INDEX)))


# The files themselves


def test_the_same_bytes_and_a_config_that_peft_reads_without_a_warning(tmp_path):
    config = LORA(r=2, lora_alpha=3, target_modules=["fc1", "fc2"], revision="main", lora_dropout=0.1, alpha_pattern={"fc1": 5})
    model = moved(peft.get_peft_model(Theirs(), config))
    peft_save(model, tmp_path / "x")
    save_adapter(tmp_path / "y", load_adapter(tmp_path / "x").states, format="peft")
    one, two = ((tmp_path / folder / "adapter_model.safetensors").read_bytes() for folder in "xy")
    assert one == two
    with warnings.catch_warnings(action="error"):
        got = peft.PeftConfig.from_pretrained(tmp_path / "y")
    want = peft.PeftConfig.from_pretrained(tmp_path / "x")
    left, right = ({key: value for key, value in config.to_dict().items() if key != "auto_mapping"} for config in (got, want))
    assert {**left, "alpha_pattern": {}, "lora_alpha": 0} == {**right, "alpha_pattern": {}, "lora_alpha": 0}


def test_suffixes_mean_just_the_adapted_layers(tmp_path):
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([TorchBlock() for _ in range(3)])
            self.fc1, self.net = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))

        def forward(self, x):
            return x

    class Names:
        path = "base"

        def modules(self):
            return [name for name, module in Deep().named_modules() if hasattr(module, "weight")]

    paths = [f"layers.{layer}.{name}" for layer in range(3) for name in ("fc1", "fc2")]
    shapes = {"fc1": (5, 7), "fc2": (7, 4)}
    for chosen in (paths, paths[:2], paths[1::2], [*paths[::2], "fc1"], ["fc1"], paths[:1], ["net.0"], ["net.0", "net.2"]):
        tensors, modules = {}, {}
        for path in chosen:
            d, k = shapes[path[-3:]] if path.startswith("layers") else (2, 2)
            tensors |= {f"{path}.lora_A": np.ones((d, 2), np.float32), f"{path}.lora_B": np.ones((2, k), np.float32)}
            modules[path] = {"method": "lora", "layer_type": "linear", "shape": [d, k], "rank": 2, "alpha": 2.0, "scaling": 1.0}
        save_adapter(tmp_path / "x", AdapterState("default", {}, tensors, modules), format="peft", base=Names())
        model = peft_load(Deep(), tmp_path / "x")
        assert {path for path, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")} == set(chosen)


def test_targets_and_patterns_mean_what_they_mean_to_peft():
    """Random configs over the modules of a model: which are wrapped, and which pattern gives the rank."""
    from loratk_plugins.peft.config import PeftConfig
    from loratk_plugins.peft.targets import _wraps
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    rng = np.random.default_rng(0)
    parts = ["model", "layers", "blocks", "0", "1", "12", "attn", "q_proj", "fc", "lora_A"]
    names = [".".join(rng.choice(parts, rng.integers(1, 6))) for _ in range(60)]
    targets = ["fc", "q_proj", "attn.fc", "0.fc", "layers.0.fc", r".*(fc|q_proj)", r"model\.layers\.\d+\..*", r"(?!.*attn).*fc", "1", "x"]
    patterns = ["fc", "q.proj", "^fc", r"layers\.\d+\.fc", "attn|fc", ".*fc", "layers.0.*", r"(\w+\.){2}fc", "lora_A"]
    for _ in range(400):
        text = bool(rng.random() < 0.4)
        values = {"target_modules": str(rng.choice(targets)) if text else [str(target) for target in rng.choice(targets[:5], 2)]}
        if rng.random() < 0.3:
            values["exclude_modules"] = str(rng.choice(targets)) if rng.random() < 0.5 else [str(rng.choice(targets))]
        if not text and rng.random() < 0.5:
            values["layers_to_transform"] = [int(number) for number in rng.choice([0, 1, 12], 2)] if rng.random() < 0.7 else 1
            if rng.random() < 0.5:
                values["layers_pattern"] = ["layers", "blocks"][: rng.integers(1, 3)]
        keys = [str(key) for key in rng.choice(patterns, 3)]
        theirs, ours = LORA(**values), PeftConfig(values | {"rank_pattern": dict.fromkeys(keys, 2)})
        for name in names:
            assert _wraps(ours, name) == bool(check_target_module_exists(theirs, name)), (values, name)
            found = ours._first("rank_pattern", name, None)[1]
            assert (found or name) == get_pattern_key(list(ours.get("rank_pattern")), name)
