"""Networks with adapters compute, differentiate and train as PEFT's on PyTorch do."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with it")
peft = pytest.importorskip("peft", reason="PEFT is not installed; these tests compare with it")

from loratk import LoraConfig, LoraModel, ops  # noqa: E402
from loratk.nn import MLP, AdamW  # noqa: E402

SIZES = [20, 32, 16, 8]
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-10}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
methods = pytest.mark.parametrize("method", ["lora", "dora"])


class Pair:
    """The same network with the same adapter, here and there."""

    def __init__(self, method, dtype, **options):
        rng = np.random.default_rng(7)
        self.ours = LoraModel.adapt(MLP(SIZES, rng=rng, dtype=dtype), LoraConfig(rank=4, alpha=12, method=method, **options))
        layers = []
        for name, array in self.ours.base_state().items():
            if name.endswith("weight"):
                layers += [torch.nn.Linear(*array.shape).to(torch.from_numpy(array).dtype), torch.nn.ReLU()]
                layers[-2].weight.data = torch.from_numpy(array.T.copy())
            else:
                layers[-2].bias.data = torch.from_numpy(array)
        network = torch.nn.Sequential(*layers[:-1])
        targets = [str(i) for i in range(0, 2 * len(SIZES) - 2, 2)]
        config = peft.LoraConfig(
            r=4, lora_alpha=12, target_modules=targets, use_dora=method == "dora", use_rslora=options.get("rslora", False)
        )
        self.theirs = peft.get_peft_model(network, config)
        state = self.ours.state()
        for name in state:
            if name.endswith("lora_B"):
                state[name] = rng.standard_normal(state[name].shape).astype(dtype) * dtype(0.1)
            if name.endswith("magnitude"):
                state[name] *= (1 + 0.1 * rng.standard_normal(state[name].shape)).astype(dtype)
        self.ours.load_state(state)
        for name, array in state.items():
            self.parameter(name).data = torch.from_numpy(np.ascontiguousarray(array.T))
        self.x = rng.standard_normal((64, SIZES[0])).astype(dtype)
        self.y = rng.integers(0, SIZES[-1], 64)

    def parameter(self, name):
        """Their parameter that stands for ours of that name."""
        layer, _, kind = name.partition(".")
        module = self.theirs.base_model.model[int(layer)]
        if kind == "magnitude":
            return module.lora_magnitude_vector["default"].weight
        return getattr(module, kind)["default"].weight

    def losses(self):
        ours = ops.cross_entropy(self.ours(self.x), self.y)
        theirs = torch.nn.functional.cross_entropy(self.theirs(torch.from_numpy(self.x)), torch.from_numpy(self.y))
        return ours, theirs

    def tensors(self):
        return {name: (parameter, self.parameter(name)) for name, parameter in self.ours._tensors("default").items()}


def close(got, want, dtype):
    np.testing.assert_allclose(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * max(1e-30, np.abs(want).max()))


@dtypes
@methods
@pytest.mark.parametrize("rslora", [False, True])
def test_output_and_gradients(method, dtype, rslora):
    pair = Pair(method, dtype, rslora=rslora)
    close(pair.ours(pair.x).numpy(), pair.theirs(torch.from_numpy(pair.x)).detach().numpy(), dtype)
    for loss in pair.losses():
        loss.backward()
    for ours, theirs in pair.tensors().values():
        close(ours.grad, theirs.grad.numpy().T, dtype)


@dtypes
@methods
def test_twenty_steps_of_adamw(method, dtype):
    pair = Pair(method, dtype)
    ours = AdamW(pair.ours.trainable(), lr=1e-2, weight_decay=0.01)
    theirs = torch.optim.AdamW([p for p in pair.theirs.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.01)
    before = pair.losses()[0].item()
    for _ in range(20):
        for optimiser, loss in zip((ours, theirs), pair.losses(), strict=True):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert pair.losses()[0].item() < 0.9 * before
    for mine, other in pair.tensors().values():
        close(mine.numpy(), other.detach().numpy().T, dtype)


@methods
def test_merged_weights(method):
    pair = Pair(method, np.float64)
    got = pair.ours.merged_state()
    want = pair.theirs.merge_and_unload().state_dict()
    assert set(got) == set(want)
    for name, array in want.items():
        close(got[name], array.numpy().T, np.float64)


def test_embedding_and_convolution():
    from loratk.nn import Conv2d, Embedding, Module

    class Ours(Module):
        def __init__(self, rng):
            self.embedding, self.conv = Embedding(11, 6, rng=rng, dtype=np.float64), Conv2d(6, 5, 3, padding=1, rng=rng, dtype=np.float64)

        def forward(self, index):
            return self.conv(self.embedding(index))

    class Theirs(torch.nn.Module):
        def __init__(self, state):
            super().__init__()
            self.embedding, self.conv = torch.nn.Embedding(11, 6), torch.nn.Conv2d(6, 5, 3, padding=1)
            self.embedding.weight.data = torch.from_numpy(state["embedding.weight"])
            self.conv.weight.data = torch.from_numpy(state["conv.weight"].transpose(3, 2, 0, 1).copy())
            self.conv.bias.data = torch.from_numpy(state["conv.bias"])

        def forward(self, index):
            return self.conv(self.embedding(index).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    rng = np.random.default_rng(3)
    model = LoraModel.adapt(Ours(rng), LoraConfig(rank=2, alpha=6, targets=("embedding", "conv")))
    state = {name: rng.standard_normal(array.shape) for name, array in model.state().items()}
    model.load_state(state)
    theirs = peft.get_peft_model(Theirs(model.base_state()), peft.LoraConfig(r=2, lora_alpha=6, target_modules=["embedding", "conv"]))
    embedding, conv = theirs.base_model.model.embedding, theirs.base_model.model.conv
    embedding.lora_embedding_A["default"].data = torch.from_numpy(state["embedding.lora_A"].T.copy())
    embedding.lora_embedding_B["default"].data = torch.from_numpy(state["embedding.lora_B"].T.copy())
    conv.lora_A["default"].weight.data = torch.from_numpy(state["conv.lora_A"].reshape(3, 3, 6, 2).transpose(3, 2, 0, 1).copy())
    conv.lora_B["default"].weight.data = torch.from_numpy(state["conv.lora_B"].T[:, :, None, None].copy())
    index = rng.integers(0, 11, (2, 7, 8))
    close(model(index).numpy(), theirs(torch.from_numpy(index)).detach().numpy(), np.float64)
