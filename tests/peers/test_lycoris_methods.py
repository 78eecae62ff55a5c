"""LoHa, LoKr and IA3 of LyCORIS train here from its files, with its values and gradients, and go back to it the same."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with LyCORIS on it")
lycoris = pytest.importorskip("lycoris", reason="LyCORIS is not installed; these tests compare with it")

from lycoris.modules.ia3 import IA3Module  # noqa: E402
from lycoris.modules.loha import LohaModule  # noqa: E402
from lycoris.modules.lokr import LokrModule  # noqa: E402

from loratk import LoraConfig, LoraModel, ops  # noqa: E402
from loratk.errors import ConfigError, FormatError  # noqa: E402
from loratk.exchange.methods_layout import to_torch  # noqa: E402
from loratk.io import open_safetensors, write_safetensors  # noqa: E402
from loratk.lora.files import adapter_state  # noqa: E402
from loratk.nn import Conv2d, Linear, Module  # noqa: E402

X = np.random.default_rng(0).standard_normal((2, 5, 6, 4)).astype(np.float32)


class Net(Module):
    def __init__(self):
        self.fc, self.conv = Linear(4, 6, rng=1), Conv2d(6, 8, (3, 2), rng=2, bias=False)

    def forward(self, x):
        return self.conv(ops.tanh(self.fc(x)))


class Layers:
    """The same two layers in torch, each with LyCORIS's module for it."""

    def __init__(self, cls, **options):
        torch.manual_seed(0)
        self.fc, self.conv = torch.nn.Linear(4, 6), torch.nn.Conv2d(6, 8, (3, 2), bias=False)
        state = Net().state_dict()
        self.fc.weight.data, self.fc.bias.data = torch.from_numpy(state["fc.weight"].T.copy()), torch.from_numpy(state["fc.bias"])
        self.conv.weight.data = torch.from_numpy(state["conv.weight"].transpose(3, 2, 0, 1).copy())
        self.modules = {name: cls(f"lora_unet_{name}", getattr(self, name), 1.0, **options) for name in ("fc", "conv")}
        with torch.no_grad():
            for module in self.modules.values():
                for parameter in module.parameters():
                    parameter.add_(0.3 * torch.randn(parameter.shape))

    def diff(self, name):
        module = self.modules[name]
        shape = getattr(self, name).weight.shape
        if isinstance(module, IA3Module):
            return module.get_diff_weight(1, shape)[0]
        return module.get_weight(shape)  # get_diff_weight applies the scale twice

    def __call__(self, x):
        h = torch.tanh(torch.nn.functional.linear(torch.from_numpy(x), self.fc.weight + self.diff("fc"), self.fc.bias))
        return torch.nn.functional.conv2d(h.permute(0, 3, 1, 2), self.conv.weight + self.diff("conv")).permute(0, 2, 3, 1)

    def tensors(self):
        return {
            f"lora_unet_{name}.{key}": value.detach().numpy() for name, module in self.modules.items()
            for key, value in module.state_dict().items() if key != "scalar"
        }  # fmt: skip

    def save(self, path):
        write_safetensors(path, self.tensors(), {})
        return path

    def load(self, path):
        with open_safetensors(path) as reader:
            state = {name: torch.from_numpy(reader.array(name)) for name in reader.names()}
        for name, module in self.modules.items():
            own = {key.removeprefix(f"lora_unet_{name}."): value for key, value in state.items() if key.startswith(f"lora_unet_{name}.")}
            with torch.no_grad():
                for key, parameter in module.named_parameters():
                    parameter.copy_(own.pop(key))
            assert set(own) <= {"alpha", "on_input"}
            assert "alpha" not in own or float(own["alpha"]) == pytest.approx(float(module.alpha))


CASES = {
    "loha": (LohaModule, {"lora_dim": 2, "alpha": 3.0}, {}),
    "lokr": (LokrModule, {"lora_dim": 1, "alpha": 2.0}, {}),
    "lokr-both": (LokrModule, {"lora_dim": 1, "alpha": 2.0, "decompose_both": True, "factor": 4}, {"factor": 4, "decompose_both": True}),
    "lokr-factor": (LokrModule, {"lora_dim": 1, "alpha": 2.0, "factor": 2}, {"factor": 2}),
    "lokr-full": (LokrModule, {"lora_dim": 1, "alpha": 1.0, "full_matrix": True}, {"full_matrix": True}),
    "ia3-inputs": (IA3Module, {"train_on_input": True}, {"side": "inputs"}),
    "ia3-products": (IA3Module, {"train_on_input": False}, {"side": "products"}),
}
each = pytest.mark.parametrize("name", CASES)


def close(got, want, tolerance=1e-5):
    want = want.detach().numpy() if isinstance(want, torch.Tensor) else want
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


@each
def test_a_file_of_lycoris_trains_here_with_the_same_values_and_gradients(name, tmp_path):
    cls, options, _ = CASES[name]
    theirs = Layers(cls, **options)
    model = LoraModel.from_file(Net(), theirs.save(tmp_path / "x.safetensors"))
    assert next(iter(model.adapters.values())).method == name.partition("-")[0]
    y, want = model(X), theirs(X)
    close(y.numpy(), want)
    (y * y).sum().backward()
    (want * want).sum().backward()
    state = adapter_state(model, "default")
    for module, record in state.modules.items():
        held = model.layers[module].adapter("default").tensors()
        _, grads, _ = to_torch(record, {key: parameter.grad for key, parameter in held.items()})
        own = dict(theirs.modules[module].named_parameters())
        if record["method"] == "ia3":
            ((_, grad),) = {key: p.grad for key, p in held.items()}.items()
            close(grad, own["weight"].grad.reshape(-1), 1e-4)
            continue
        assert grads.keys() == own.keys()
        for key, grad in grads.items():
            close(grad, own[key].grad, 1e-4)


@each
def test_what_trained_here_goes_to_lycoris(name, tmp_path):
    cls, options, own = CASES[name]
    rank, alpha = options.get("lora_dim", 1), options.get("alpha", 1.0)
    config = LoraConfig(rank, alpha, targets=["fc", "conv"], method=name.partition("-")[0], options=own)
    model = LoraModel.adapt(Net(), config)
    rng = np.random.default_rng(3)
    for parameter in model.trainable():
        parameter.assign(parameter.numpy() + rng.standard_normal(parameter.shape).astype(np.float32))
    model.save(tmp_path / "x.safetensors", format="kohya", options={"prefix": "lora_unet"})
    theirs = Layers(cls, **options)
    theirs.load(tmp_path / "x.safetensors")
    close(model(X).numpy(), theirs(X), 1e-4)
    close(LoraModel.from_file(Net(), tmp_path / "x.safetensors")(X).numpy(), model(X).numpy(), 1e-4)


def test_a_sparse_change_goes_as_the_whole_difference(tmp_path):
    model = LoraModel.adapt(Net(), LoraConfig(1, targets=["fc", "conv"], method="sparse"))
    rng = np.random.default_rng(3)
    for parameter in model.trainable():
        parameter.assign(rng.standard_normal(parameter.shape).astype(np.float32))
    model.save(tmp_path / "x.safetensors", format="kohya", options={"prefix": "lora_unet"})
    with open_safetensors(tmp_path / "x.safetensors") as reader:
        held = {name: reader.array(name) for name in reader.names()}
    assert held.keys() == {"lora_unet_fc.diff", "lora_unet_conv.diff"}
    before, after = model.base_state(), model.merged_state()
    close(held["lora_unet_fc.diff"], (after["fc.weight"] - before["fc.weight"]).T, 1e-5)
    close(held["lora_unet_conv.diff"], (after["conv.weight"] - before["conv.weight"]).transpose(3, 2, 0, 1), 1e-5)


def test_forms_that_do_not_train_here_are_named(tmp_path):
    theirs = Layers(LohaModule, lora_dim=2, use_tucker=True)
    with pytest.raises(FormatError, match=r"module 'conv': its LoHa has 'hada_t1', 'hada_t2' besides.*--bake"):
        LoraModel.from_file(Net(), theirs.save(tmp_path / "x.safetensors"))
    theirs = Layers(LohaModule, lora_dim=2, weight_decompose=True)
    with pytest.raises(FormatError, match=r"its LoHa has 'dora_scale' besides"):
        LoraModel.from_file(Net(), theirs.save(tmp_path / "y.safetensors"))


def test_ia3_of_outputs_with_a_bias_is_not_that_of_lycoris(tmp_path):
    model = LoraModel.adapt(Net(), LoraConfig(targets=["fc"], method="ia3"))
    with pytest.raises(ConfigError, match="'ia3_l' does not belong to ia3 of this kind; --bake"):
        model.save(tmp_path / "x.safetensors", format="kohya")
