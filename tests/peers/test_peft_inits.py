"""Initialisations start where PEFT's start, with its gradients, and what PEFT saved of them is read right."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with it")
peft = pytest.importorskip("peft", reason="PEFT is not installed; these tests compare with it")

import loratk  # noqa: E402
from loratk import LoraConfig, LoraModel, ops  # noqa: E402
from loratk.errors import FormatError  # noqa: E402
from loratk.nn import MLP  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's own, about changed bases and hooks
SIZES = [20, 16, 12]
RNG = np.random.default_rng(3)
X = (RNG.standard_normal((64, 20)) * np.linspace(0.2, 2, 20)).astype(np.float32)
X[np.unravel_index(np.abs(X).argmax(), X.shape)] = 9  # the largest entry is positive, as PEFT's CorDA needs it for a scale
Y = RNG.standard_normal((64, 12)).astype(np.float32)


def network():
    ours = MLP(SIZES, rng=7)
    theirs = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 12))
    with torch.no_grad():
        for name in ("0", "2"):
            module = vars(ours)[name]
            module.weight.assign(module.weight.numpy() * np.linspace(0.1, 3, module.weight.shape[1], dtype=np.float32))
            theirs[int(name)].weight.copy_(torch.from_numpy(module.weight.numpy().T.copy()))
            theirs[int(name)].bias.copy_(torch.from_numpy(module.bias.numpy()))
    return ours, theirs


def config(init, **options):
    return peft.LoraConfig(r=4, lora_alpha=6, target_modules=["0", "2"], init_lora_weights=init, **options)


def factors(theirs):
    """Their factors in our orientation."""
    found = {}
    for name in ("0", "2"):
        module = theirs.base_model.model[int(name)]
        for key in ("lora_A", "lora_B"):
            found[f"{name}.{key}"] = getattr(module, key)["default"].weight
    return found


def aligned(got, want):
    """Ours with the signs of theirs, rank by rank: a decomposition leaves them open."""
    made = dict(got)
    for name in ("0", "2"):
        signs = np.sign(np.sum(got[f"{name}.lora_A"] * want[f"{name}.lora_A"].detach().numpy().T, axis=0))
        made[f"{name}.lora_A"], made[f"{name}.lora_B"] = got[f"{name}.lora_A"] * signs, got[f"{name}.lora_B"] * signs[:, None]
    return made


def check(ours, theirs):
    """Factors, outputs and gradients."""
    want = factors(theirs)
    state = {name: array for name, array in ours.state().items() if "lora_" in name}
    got = aligned(state, want)
    for name, tensor in want.items():
        assert np.allclose(got[name], tensor.detach().numpy().T, atol=2e-5), name
    assert np.allclose(ours(X).numpy(), theirs(torch.from_numpy(X)).detach().numpy(), atol=2e-5)
    ops.mean((ours(X) - Y) ** 2).backward()
    torch.nn.functional.mse_loss(theirs(torch.from_numpy(X)), torch.from_numpy(Y)).backward()
    grads = aligned_grads(ours, state, want)
    for name, tensor in want.items():
        if tensor.grad is not None and grads[name] is not None:
            assert np.allclose(grads[name], tensor.grad.numpy().T, atol=1e-5), name


def aligned_grads(ours, state, want):
    tensors, found = ours._tensors("default"), {}
    for name in ("0", "2"):
        signs = np.sign(np.sum(state[f"{name}.lora_A"] * want[f"{name}.lora_A"].detach().numpy().T, axis=0))
        signs = np.where(signs == 0, 1, signs)
        for key, turn in (("lora_A", signs), ("lora_B", signs[:, None])):
            grad = tensors[f"{name}.{key}"].grad
            found[f"{name}.{key}"] = None if grad is None else grad * turn
    return found


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_from_the_weight(init):
    ours, theirs = network()
    check(LoraModel.adapt(ours, LoraConfig(rank=4, alpha=6, init=init)), peft.get_peft_model(theirs, config(init)))


def test_mica():
    ours, theirs = network()
    ours = LoraModel.adapt(ours, LoraConfig(rank=4, alpha=6, init="mica"))
    theirs = peft.get_peft_model(theirs, config("mica"))
    for name, tensor in factors(theirs).items():
        got, want = ours.state()[name], tensor.detach().numpy().T
        assert np.allclose(np.abs(got), np.abs(want), atol=2e-5)
        assert tensor.requires_grad == (name.endswith("lora_A")) == ours._tensors("default")[name].requires_grad


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_by_chance_of_the_same_law(init):
    big = torch.nn.Sequential(torch.nn.Linear(4000, 64))
    theirs = peft.get_peft_model(big, peft.LoraConfig(r=16, target_modules=["0"], init_lora_weights=init)).base_model.model[0]
    ours = LoraModel.adapt(MLP([4000, 64], rng=0), LoraConfig(rank=16, init=init)).state()
    for key in ("lora_A", "lora_B"):
        want = getattr(theirs, key)["default"].weight.detach().numpy()
        assert ours[f"0.{key}"].std() == pytest.approx(want.std(), rel=0.1)


def test_eva_with_its_ranks():
    from peft.tuners.lora.eva import get_eva_state_dict

    ours, theirs = network()
    spread = np.where(np.arange(20) < 6, 1 + 0.1 * np.arange(20), 0.05)
    x = (np.random.default_rng(0).standard_normal((200, 20)) * spread).astype(np.float32)
    ours = LoraModel.adapt(ours, LoraConfig(rank=4, alpha=6, init="eva"), data=[x])
    own = config("eva", eva_config=peft.EvaConfig(rho=2.0, tau=0.999999))
    want = get_eva_state_dict(
        theirs, [torch.from_numpy(x)], own, forward_fn=lambda model, x: model(x), prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None, show_progress_bar=False,
    )  # fmt: skip
    assert {name: ours.state()[f"{name}.lora_A"].shape[1] for name in want} == {name: len(a) for name, a in want.items()}
    assert sum(map(len, want.values())) == 8
    assert len({len(a) for a in want.values()}) == 2  # ranks have moved
    for name, a in want.items():
        got = ours.state()[f"{name}.lora_A"]
        assert np.allclose(np.abs(np.sum(got * a.numpy().T, axis=0)), 1, atol=1e-3)


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda(mode):
    pytest.importorskip("attr", reason="PEFT's CorDA needs the package attrs, which is not installed")
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    ours, theirs = network()
    ours = LoraModel.adapt(ours, LoraConfig(rank=4, alpha=6, init={"name": "corda", "mode": mode}), data=[X])
    own = config("corda", corda_config=CordaConfig(corda_method=mode, verbose=False))
    with torch.no_grad():
        preprocess_corda(theirs, own, run_model=lambda: theirs(torch.from_numpy(X)))
    check(ours, peft.get_peft_model(theirs, own))


def test_lora_gas_directions_are_those_of_pefts_gradient():
    """PEFT multiplies B by the singular values, which the authors' code does not: the directions are the same."""
    from peft import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    ours, theirs = network()
    loss = lambda y, target: ops.mean((y - target) ** 2)  # noqa: E731
    ours = LoraModel.adapt(ours, LoraConfig(rank=4, alpha=6, init={"name": "lora_ga", "scale": "unit"}), data=[(X, Y)], loss=loss)
    own = config("lora_ga", lora_ga_config=LoraGAConfig(direction="ArB2r", scale="stable"))

    def step():
        torch.nn.functional.mse_loss(theirs(torch.from_numpy(X)), torch.from_numpy(Y)).backward()

    preprocess_loraga(theirs, own, train_step=step)
    for name, tensor in factors(peft.get_peft_model(theirs, own)).items():
        got, want = ours.state()[name], tensor.detach().numpy().T
        axis = 0 if name.endswith("lora_A") else 1
        want = want / np.linalg.norm(want, axis=axis, keepdims=True)
        assert np.allclose(np.abs(np.sum(got * want, axis=axis)), 1, atol=1e-3), name


# What PEFT saved


def saved(init, path, convert=False):
    """A network, PEFT's folder of its trained adapter, and what PEFT computes."""
    ours, theirs = network()
    model = peft.get_peft_model(theirs, config(init))
    if convert:
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(path / "start")
        model.peft_config["default"].init_lora_weights = init
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for tensor in factors(model).values():
            tensor += torch.from_numpy(0.05 * rng.standard_normal(tensor.shape).astype(np.float32))
    model.save_pretrained(path / "a", **({"path_initial_model_for_weight_conversion": str(path / "start")} if convert else {}))
    return ours, path / "a", model(torch.from_numpy(X)).detach().numpy(), model


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_beside_a_changed_base_is_read_with_what_was_taken_off(init, tmp_path):
    ours, path, want, _ = saved(init, tmp_path)
    np.savez(tmp_path / "base.npz", **ours.state_dict())
    state = ours.state_dict()
    model = LoraModel.from_file(ours, path)
    assert model.adapters["default"].init == init
    assert np.allclose(model(X).numpy(), want, atol=1e-4)
    merged = model.merged_state()
    loratk.merge(tmp_path / "base.npz", [path], tmp_path / "merged.npz", order="input-first")
    with np.load(tmp_path / "merged.npz") as arrays:
        assert all(np.allclose(arrays[name], merged[name], atol=1e-5) for name in state)
    reading = loratk.load_adapter(path)
    assert any("give the base as it was (--base), and what was taken off it is worked out" in note for note in reading.notes)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_converted_adapter_needs_nothing(init, tmp_path):
    ours, path, want, _ = saved(init, tmp_path, convert=True)
    assert np.allclose(LoraModel.from_file(ours, path)(X).numpy(), want, atol=1e-4)


def test_ours_is_read_by_peft(tmp_path):
    ours, theirs = network()
    model = LoraModel.adapt(ours, LoraConfig(rank=4, alpha=6, init="pissa"))
    rng = np.random.default_rng(0)
    model.load_state(
        {name: a if "initial" in name else a + 0.05 * rng.standard_normal(a.shape).astype(np.float32) for name, a in model.state().items()}
    )
    model.save(tmp_path / "a", format="peft")
    got = peft.PeftModel.from_pretrained(theirs, tmp_path / "a")(torch.from_numpy(X)).detach().numpy()
    assert np.allclose(got, model(X).numpy(), atol=1e-4)


def test_what_cannot_be_worked_out_is_refused_unless_the_base_is_the_changed_one(tmp_path):
    ours, path, want, trained = saved("pissa_niter_4", tmp_path)
    with pytest.raises(FormatError, match=r"'pissa_niter_4': training changed the base's weights.*in a way that the file does not tell"):
        LoraModel.from_file(ours, path)
    residual, _ = network()
    for name in ("0", "2"):
        weight = trained.base_model.model[int(name)].base_layer.weight.detach().numpy()
        vars(residual)[name].weight.assign(np.ascontiguousarray(weight.T))
    model = LoraModel.from_file(residual, path, options={"residual_base": True})
    assert np.allclose(model(X).numpy(), want, atol=1e-4)
    notes = loratk.load_adapter(path, options={"residual_base": "yes"}).notes
    assert any("taken as it is, as the option residual_base says" in note for note in notes)
