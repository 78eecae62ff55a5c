"""LoHa, LoKr, VeRA and IA3 compute and differentiate as PEFT's, train on from PEFT's files, and go back to PEFT the same."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with it")
peft = pytest.importorskip("peft", reason="PEFT is not installed; these tests compare with it")

from peft_pairs import INDEX, Ours, Theirs, close, moved, output_first, peft_load, peft_save  # noqa: E402

from loratk import LoraConfig, LoraModel  # noqa: E402
from loratk.convert import export_adapters  # noqa: E402
from loratk.errors import ConfigError, FormatError  # noqa: E402
from loratk.exchange.methods_layout import to_torch  # noqa: E402
from loratk.io import write_safetensors  # noqa: E402
from loratk.lora.files import adapter_state  # noqa: E402

BOTH = ["fc1", "conv", "head"]
CONFIGS = {
    "loha": peft.LoHaConfig(r=3, alpha=6, target_modules=BOTH, rank_pattern={"conv": 2}, alpha_pattern={"conv": 5}),
    "lokr": peft.LoKrConfig(r=1, alpha=2, target_modules=BOTH),
    "lokr-both": peft.LoKrConfig(r=1, alpha=2, target_modules=["fc1", "fc2"], decompose_both=True, decompose_factor=7),
    "lokr-whole": peft.LoKrConfig(r=8, alpha=4, target_modules=BOTH),
    "lokr-factor": peft.LoKrConfig(r=2, alpha=4, target_modules=BOTH, decompose_factor=2),
    "vera": peft.VeraConfig(r=9, target_modules=["fc1", "fc2", "head"], d_initial=0.3),
    "ia3": peft.IA3Config(target_modules=["fc1", "fc2", "head"], feedforward_modules=["fc2"]),
    "ia3-conv": peft.IA3Config(target_modules=["conv", "fc2"], feedforward_modules=["conv"]),
    "ia3-conv-outputs": peft.IA3Config(target_modules=["conv", "head"], feedforward_modules=[]),
}
each = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture
def pair(name, tmp_path):
    """PEFT's model with random values, and ours with the adapter of its file."""
    theirs = moved(peft.get_peft_model(Theirs(), CONFIGS[name]))
    peft_save(theirs, tmp_path / "theirs")
    return theirs, LoraModel.from_file(Ours(), tmp_path / "theirs")


def counted(y):
    """A number that every entry of an output counts for differently."""
    weights = np.random.default_rng(5).standard_normal(y.shape).astype(np.float32)
    return (y * (torch.from_numpy(weights) if isinstance(y, torch.Tensor) else weights)).sum()


def gradients(model):
    """Those of every parameter, in the order of axes and under the names of torch's tools."""
    found = {}
    for module, record in adapter_state(model, "default").modules.items():
        held = model.layers[module].adapter("default").tensors()
        grads = {name: p.numpy() if p.grad is None else p.grad for name, p in held.items()}
        _, there, _ = to_torch(record, grads)
        found |= {f"{module}.{name}": grad for name, grad in there.items()}
    return found


@each
def test_a_file_of_pefts_trains_here_with_the_same_values_and_gradients(name, pair):
    theirs, ours = pair
    (config,) = ours.adapters.values()
    assert config.method == name.partition("-")[0]
    y, want = ours(INDEX), theirs(torch.from_numpy(INDEX))
    close(y.numpy(), want)
    counted(y).backward()
    counted(want).backward()
    grads = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    want = {name.removeprefix("base_model.model.").replace(".default", ""): grad for name, grad in grads.items()}
    got = gradients(ours)
    assert got.keys() == want.keys()
    for key, grad in want.items():
        close(got[key], grad, 1e-4)


def step(model):
    counted(model(INDEX)).backward()
    for parameter in model.trainable():
        parameter.assign(parameter.numpy() - np.float32(0.01) * parameter.grad)
        parameter.grad = None


@each
def test_what_trained_here_goes_back_to_peft(name, pair, tmp_path):
    _, ours = pair
    step(ours)
    ours.save(tmp_path / "back", format="peft")
    close(peft_load(Theirs(), tmp_path / "back")(torch.from_numpy(INDEX)), ours(INDEX).numpy())
    again = LoraModel.from_file(Ours(), tmp_path / "back")
    want = ours.merged_state()
    for key, value in again.merged_state().items():
        close(value, want[key])


OWN = {
    "loha": {"targets": BOTH},
    "lokr": {"rank": 1, "targets": BOTH},
    "lokr-both": {"rank": 1, "targets": ["fc1"], "options": {"factor": 7, "decompose_both": True}},
    "lokr-factor": {"rank": 9, "targets": ["fc2", "conv"], "options": {"factor": 2, "full_matrix": True}},
    "vera": {"rank": 12, "targets": ["fc1", "fc2", "head"]},
    "ia3": {"targets": BOTH, "layer_pattern": {"head": {"options": {"side": "inputs"}}, "conv": {"options": {"side": "inputs"}}}},
    "ia3-outputs": {"targets": BOTH},
}


def random_model(name, **changes):
    config = {"rank": 2, "alpha": 3, "method": name.partition("-")[0], **OWN[name], **changes}
    model = LoraModel.adapt(Ours(), LoraConfig(**config))
    rng = np.random.default_rng(2)
    for parameter in model.trainable():
        parameter.assign(parameter.numpy() + rng.standard_normal(parameter.shape).astype(np.float32))
    return model


@pytest.mark.parametrize("name", OWN)
def test_adapters_that_began_here_go_to_peft_and_come_back(name, tmp_path):
    model = random_model(name)
    model.save(tmp_path / "x", format="peft")
    theirs = peft_load(Theirs(), tmp_path / "x")
    close(theirs(torch.from_numpy(INDEX)), model(INDEX).numpy(), 1e-4)
    close(LoraModel.from_file(Ours(), tmp_path / "x")(INDEX).numpy(), model(INDEX).numpy(), 1e-4)
    peft_save(theirs, tmp_path / "y")
    close(LoraModel.from_file(Ours(), tmp_path / "y")(INDEX).numpy(), model(INDEX).numpy(), 1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("vera", {"rank_pattern": {"fc1": 3}}, "not those that the other modules share"),  # no matrices that all could share
        ("vera", {"targets": ["conv"]}, "no VERA for a layer of the type 'conv2d'"),
        ("loha", {"targets": ["embedding"]}, "no LOHA for a layer of the type 'embedding'"),
        ("lokr", {"targets": ["fc1"], "options": {"split": [5, 7]}}, "one way to split all weights"),
        ("ia3", {"targets": ["fc1"], "layer_pattern": {}, "options": {"side": "products"}}, "no parameter 'on_input', 'weight'"),
    ],
)
def test_what_peft_cannot_hold_is_refused_and_baked(name, changes, said, tmp_path):
    model = random_model(name, **changes)
    with pytest.raises(ConfigError, match=said):
        model.save(tmp_path / "x", format="peft")
    model.save(tmp_path / "x.h5")
    how = {"bake": True, "portable": True, "bake_rank": 5, "base": base_file(tmp_path, model)}
    export_adapters(tmp_path / "x.h5", tmp_path / "plain", to="peft", **how)
    close(peft_load(Theirs(), tmp_path / "plain")(torch.from_numpy(INDEX)), model(INDEX).numpy(), 1e-4)


def base_file(folder, model):
    write_safetensors(folder / "base.safetensors", output_first(model.base_state()), {})
    return folder / "base.safetensors"


def test_vera_needs_the_matrices_that_pytorch_drew(tmp_path):
    with warnings.catch_warnings(action="ignore"):  # that they are not saved
        config = peft.VeraConfig(r=4, target_modules=["fc1"], save_projection=False)
        peft_save(moved(peft.get_peft_model(Theirs(), config)), tmp_path / "x")
    with pytest.raises(FormatError, match="save_projection=True"):
        LoraModel.from_file(Ours(), tmp_path / "x")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (peft.LoHaConfig(r=2, target_modules=["conv"], use_effective_conv2d=True), "LoHa has 'hada_t1', 'hada_t2' besides"),
        (peft.LoKrConfig(r=1, target_modules=["conv"], use_effective_conv2d=True), "LoKr has 'lokr_t2' besides"),
    ],
)
def test_forms_that_do_not_train_here_are_named_and_can_be_baked(config, said, tmp_path):
    theirs = moved(peft.get_peft_model(Theirs(), config))
    peft_save(theirs, tmp_path / "x")
    with pytest.raises(FormatError, match=said):
        LoraModel.from_file(Ours(), tmp_path / "x")
    export_adapters(tmp_path / "x", tmp_path / "plain", to="peft", bake=True, portable=True)
    close(LoraModel.from_file(Ours(), tmp_path / "plain")(INDEX).numpy(), theirs(torch.from_numpy(INDEX)).detach().numpy())
