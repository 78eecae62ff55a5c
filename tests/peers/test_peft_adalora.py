"""AdaLoRA's outputs, gradients with the penalty, scores, budgets and masks are PEFT's, step after step.

Where PEFT departs from the paper, each test says how it is brought to it: sensitivities are taken before the optimiser's step, in the step
of the last cut too, nothing is cut where the budget is still whole, and `ranknum`, by which PEFT divides, does not train.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with it")
peft = pytest.importorskip("peft", reason="PEFT is not installed; these tests compare with it")

from loratk import LoraConfig, LoraModel, ops  # noqa: E402
from loratk.lora.control import update  # noqa: E402
from loratk.nn import MLP, AdamW  # noqa: E402

SIZES, RANK, STEPS, TINIT, TFINAL, TARGET, GAMMA = [10, 12, 9, 7], 5, 40, 6, 9, 2, 0.5
KINDS = {"lora_A": (1, 0), "lora_E": None, "lora_B": (1, 0)}


class Twins:
    """The same network with the same AdaLoRA adapter, here and there."""

    def __init__(self, every):
        rng = np.random.default_rng(7)
        options = {
            "target_rank": TARGET, "tinit": TINIT, "tfinal": TFINAL, "deltaT": every, "orth_weight": GAMMA, "orth_form": "norms",
        }  # fmt: skip
        alpha = 8 * RANK / (RANK + 1e-5)  # PEFT divides by the rank and a little more
        config = LoraConfig(rank=RANK, alpha=alpha, method="adalora", options=options)
        self.ours = LoraModel.adapt(MLP(SIZES, rng=rng, dtype=np.float64), config)
        layers = []
        for name, array in self.ours.base_state().items():
            if name.endswith("weight"):
                layers += [torch.nn.Linear(*array.shape, dtype=torch.float64), torch.nn.ReLU()]
                layers[-2].weight.data = torch.from_numpy(array.T.copy())
            else:
                layers[-2].bias.data = torch.from_numpy(array)
        self.names = [str(i) for i in range(0, 2 * len(SIZES) - 2, 2)]
        config = peft.AdaLoraConfig(
            init_r=RANK, lora_alpha=8, target_modules=self.names, target_r=TARGET, tinit=TINIT, tfinal=TFINAL, deltaT=every,
            total_step=STEPS, orth_reg_weight=GAMMA,
        )  # fmt: skip
        self.theirs = peft.get_peft_model(torch.nn.Sequential(*layers[:-1]), config)
        self.allocator = self.theirs.base_model.rankallocator
        self.copy()
        self.x, self.y = rng.standard_normal((STEPS, 32, SIZES[0])), rng.standard_normal((STEPS, 32, SIZES[-1]))

    def pairs(self):
        for name in self.names:
            part, module = self.ours.layers[name].adapter("default").block(""), self.theirs.base_model.model[int(name)]
            for kind in KINDS:
                yield f"{name}.{kind}", vars(part)[kind], getattr(module, kind)["default"]

    def copy(self):
        for _, mine, other in self.pairs():
            array = mine.numpy()
            other.data = torch.from_numpy(np.ascontiguousarray(array.T if array.ndim == 2 else array[:, None]))

    def trained(self):
        """Their parameters but for the rank they divide by, which PEFT 0.21 trains."""
        return [p for name, p in self.theirs.named_parameters() if p.requires_grad and "ranknum" not in name]

    def penalty(self):
        """As PEFT adds it to the loss of its transformers (AdaLoraModel.forward)."""
        found = [p @ p.T if "lora_A" in n else p.T @ p for n, p in self.theirs.named_parameters() if "lora_A" in n or "lora_B" in n]
        return GAMMA * sum(torch.norm(gram - torch.eye(len(gram), dtype=gram.dtype)) for gram in found) / len(found)


def alike(got, want):
    want = want.detach().numpy()
    want = want.T if want.shape != (*got.shape, 1) else want[:, 0]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("every", [1, 3])
def test_forty_steps(every):
    twins = Twins(every)
    (controller,) = twins.ours.controllers(STEPS)
    mine = AdamW(twins.ours.trainable(), lr=5e-2, weight_decay=0.01)
    their = torch.optim.AdamW(twins.trained(), lr=5e-2, weight_decay=0.01)
    seen = set()
    for step in range(1, STEPS + 1):
        x, y = twins.x[step - 1], twins.y[step - 1]
        mine.zero_grad()
        their.zero_grad()
        controller.before_step()
        outputs, others = twins.ours(x), twins.theirs(torch.from_numpy(x))
        np.testing.assert_allclose(outputs.numpy(), others.detach().numpy(), rtol=1e-9, atol=1e-12)
        ops.mse(outputs, y).backward()
        penalty, theirs = controller.penalty(), twins.penalty()
        assert penalty.item() == pytest.approx(theirs.item(), rel=1e-12)
        penalty.backward()
        (torch.nn.functional.mse_loss(others, torch.from_numpy(y)) + theirs).backward()
        for _, parameter, other in twins.pairs():
            alike(parameter.grad, other.grad)
        if step <= STEPS - TFINAL:
            twins.allocator.update_ipt(twins.theirs.base_model.model)
        update([controller], mine)
        their.step()
        budget, cut = twins.allocator.budget_schedule(step)
        assert controller.budget(step) == budget
        if step == STEPS - TFINAL or (cut and step < STEPS - TFINAL):
            pattern = twins.allocator.mask_to_budget(twins.theirs.base_model.model, budget)
        elif step > STEPS - TFINAL:
            twins.allocator.mask_using_rank_pattern(twins.theirs.base_model.model, pattern)
        if step > TINIT and (step % every == 0 or step >= STEPS - TFINAL):
            masks = {name: controller.masks[name].tolist() for name in twins.names}
            assert masks == {name: pattern[f"{name}.lora_E.default"] for name in twins.names}
            seen.add(sum(map(sum, masks.values())))
        for name, score in controller.scores().items():
            held = [twins.allocator._element_score(f"{name}.{kind}.default").numpy() for kind in KINDS]
            np.testing.assert_allclose(score, held[1][:, 0] + held[0].mean(axis=1) + held[2].mean(axis=0), rtol=1e-8, atol=1e-300)
        for _, parameter, other in twins.pairs():
            alike(parameter.numpy(), other)
    assert seen >= {TARGET * 3, 8}
    assert controller.record() == {"ranks": TARGET * 3}


def test_its_own_loop_multiplies_gradients_with_the_weights_after_the_step():
    """What PEFT's documentation shows: `update_and_allocate` after `optimizer.step()`; the paper takes the weights of the gradient."""
    twins = Twins(1)
    (controller,) = twins.ours.controllers(STEPS)
    x, y = twins.x[0], twins.y[0]
    their = torch.optim.SGD(twins.trained(), lr=0.5)
    for _, mine, other in twins.pairs():
        mine.assign(mine.numpy() + 0.3)
        other.data += 0.3
    ops.mse(twins.ours(x), y).backward()
    torch.nn.functional.mse_loss(twins.theirs(torch.from_numpy(x)), torch.from_numpy(y)).backward()
    before = {name: (abs(p.numpy() * p.grad), abs(other * other.grad).detach()) for name, p, other in twins.pairs()}
    controller.before_update()
    for name, (mine, other) in before.items():
        alike(mine, other)
        alike(controller.sensitivity[name.split(".")[0]][name.split(".")[1]] / 0.15, other)
    their.step()
    twins.allocator.update_ipt(twins.theirs.base_model.model)
    kept = twins.allocator.exp_avg_ipt["0.lora_B.default"].numpy() / 0.15
    assert not np.allclose(kept, before["0.lora_B"][1].numpy(), rtol=1e-3)


def test_a_whole_budget_cuts_nothing_and_fails_there():
    twins = Twins(1)
    for _, mine, _ in twins.pairs():
        mine.assign(mine.numpy() + 0.3)
    twins.copy()
    torch.nn.functional.mse_loss(twins.theirs(torch.from_numpy(twins.x[0])), torch.from_numpy(twins.y[0])).backward()
    twins.allocator.update_ipt(twins.theirs.base_model.model)
    with pytest.raises(RuntimeError, match="kthvalue"):
        twins.allocator.mask_to_budget(twins.theirs.base_model.model, RANK * 3)
    (controller,) = twins.ours.controllers(STEPS)
    controller._allot(RANK * 3)
    assert all(mask.all() for mask in controller.masks.values())


def test_an_adapter_of_theirs_trains_on_here_and_goes_back_as_lora(tmp_path):
    twins = Twins(1)
    for _, mine, _ in twins.pairs():
        mine.assign(mine.numpy() + np.random.default_rng(1).standard_normal(mine.shape))
    twins.copy()
    twins.theirs.peft_config["default"].rank_pattern = None
    twins.theirs.save_pretrained(tmp_path / "theirs")
    model = LoraModel.from_file(twins.ours.unload(), tmp_path / "theirs")
    assert model.layers["0"].adapter("default").block("").method.name == "adalora"
    want = twins.theirs(torch.from_numpy(twins.x[0])).detach().numpy()
    np.testing.assert_allclose(model(twins.x[0]).numpy(), want, rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "back", format="peft")
    base = torch.nn.Sequential(*[getattr(layer, "base_layer", layer) for layer in twins.theirs.base_model.model])
    back = peft.PeftModel.from_pretrained(base, tmp_path / "back")
    assert back.peft_config["default"].peft_type == "LORA"
    np.testing.assert_allclose(back(torch.from_numpy(twins.x[0])).detach().numpy(), want, rtol=1e-5, atol=1e-5)
