"""Batches of several adapters beside PEFT's `adapter_names`: the same outputs, and DoRA, which PEFT refuses there."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with it")
peft = pytest.importorskip("peft", reason="PEFT is not installed; these tests compare with it")

from peft_pairs import INDEX, LORA, Ours, Theirs, close, moved, peft_save  # noqa: E402

from loratk import LoraModel  # noqa: E402

CONFIGS = {
    "one": {"r": 2, "lora_alpha": 8, "target_modules": ["embedding", "fc1", "head"]},
    "two": {"r": 4, "lora_alpha": 3, "target_modules": ["conv", "fc1", "fc2"], "use_rslora": True},
    "three": {"r": 3, "lora_alpha": 5, "target_modules": ["fc2", "head"]},
}
NAMES = ["one", "__base__", "two", "three", "one", "two", "three", "__base__", "one"]
OURS = [None if name == "__base__" else name for name in NAMES]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """PEFT's model with three adapters of different ranks, scales and layers, and loratk's with the same from its files."""
    theirs = None
    for name, config in CONFIGS.items():
        if theirs is None:
            theirs = peft.get_peft_model(Theirs(), LORA(**config), adapter_name=name)
        else:
            theirs.add_adapter(name, LORA(**config))
    for name in CONFIGS:
        theirs.set_adapter(name)
        moved(theirs)
    folder = tmp_path_factory.mktemp("mixed")
    peft_save(theirs, folder)
    ours = LoraModel(Ours())
    for name in CONFIGS:
        (found,) = ours.load(folder / name)
        if found != name:
            ours.rename_adapter(found, name)
    return theirs.eval(), ours.eval()


def inputs(rows):
    return np.random.default_rng(1).integers(0, 11, (rows, 4, 5))


def test_outputs_are_those_of_adapter_names(pair):
    theirs, ours = pair
    x = inputs(len(NAMES))
    with torch.no_grad():
        close(ours(x, adapter=OURS).numpy(), theirs(torch.from_numpy(x), adapter_names=NAMES))


@pytest.mark.parametrize("name", [*CONFIGS, "__base__"])
def test_a_call_for_one_adapter_is_peft_with_that_adapter(pair, name):
    theirs, ours = pair
    x = inputs(3)
    with torch.no_grad():
        close(ours(x, adapter=None if name == "__base__" else name).numpy(), theirs(torch.from_numpy(x), adapter_names=[name] * 3))


def test_gradients_are_those_of_each_adapters_rows_in_peft(pair):
    """PEFT has no mixed batches in training, so each adapter's rows go by themselves there."""
    theirs, ours = pair
    x, g = inputs(len(NAMES)), np.random.default_rng(2).standard_normal((len(NAMES), 4, 5, 3)).astype(np.float32)
    ours.train()
    ours.zero_grad()
    ours(x, adapter=OURS).backward(g)
    theirs.train()
    for name in CONFIGS:
        rows = [i for i, each in enumerate(NAMES) if each == name]
        theirs.set_adapter(name)
        theirs.zero_grad()
        theirs(torch.from_numpy(x[rows])).backward(torch.from_numpy(g[rows]))
        got = {key: layer.adapter(name).block("").lora_B.grad for key, layer in ours.layers.items() if name in layer.names()}
        want = {key: p.grad for key, p in theirs.named_parameters() if f"lora_B.{name}" in key or f"lora_embedding_B.{name}" in key}
        assert len(got) == len(want)
        for key, grad in got.items():
            (match,) = [value.numpy() for other, value in want.items() if f".{key}." in other]
            turned = match.reshape(match.shape[:2]).T if match.ndim > 2 else match.T
            close(grad, turned)
    theirs.eval()
    ours.eval()


def test_dora_which_peft_refuses_in_a_mixed_batch():
    theirs = moved(peft.get_peft_model(Theirs(), LORA(r=2, target_modules=["fc1"], use_dora=True), adapter_name="d")).eval()
    with pytest.raises(ValueError, match=r"DoRA|dora"):
        theirs(torch.from_numpy(INDEX), adapter_names=["d", "__base__"])
