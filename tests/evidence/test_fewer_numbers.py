"""On sideways digits: as good with fewer numbers, one training for all ranks, and methods beside each other in one model."""

import copy

import numpy as np
import pytest
from learning_problems import accuracy, adapted, classifier, digits, part, teach

from loratk import LoraModel
from loratk.lora import lora_drop
from loratk.nn import CrossEntropyLoss


def loss(model, task):
    """The mean loss on the images that are held out."""
    x, y = task.held_out
    return CrossEntropyLoss()(model.eval()(x), y).item()


def test_vera_learns_more_than_lora_of_rank_1_with_fewer_numbers_and_is_a_seed_and_two_vectors(tmp_path):
    """Kopiczko et al. 2024, table 2, and section 3.2 for what is stored."""
    model = adapted(method="vera", rank=64)
    teach(model, epochs=10, lr=0.1)
    others = [adapted(rank=1, alpha=2.0) for _ in range(3)]
    for other, lr in zip(others, (3e-3, 1e-2, 3e-2), strict=True):
        teach(other, epochs=10, lr=lr)
    assert model.count(trainable=True) == 3 * 64 + 256 + 128 + 10 < 0.7 * others[0].count(trainable=True)
    turned = digits()[2]
    assert loss(model, turned) < 0.7 * min(loss(other, turned) for other in others)
    model.save(tmp_path / "a.safetensors", format="safetensors")
    assert (tmp_path / "a.safetensors").stat().st_size < 6_000  # its two matrices are 130,000 bytes
    again = LoraModel.from_file(classifier(), tmp_path / "a.safetensors")
    assert np.array_equal(again(turned.held_out[0]).numpy(), model(turned.held_out[0]).numpy())


@pytest.mark.parametrize("seed", [0, 2])
def test_lora_drop_leaves_out_the_layer_that_is_not_missed(seed):
    """Zhou et al. 2024, section 3: after a short training it knows which layer to drop; each other costs three times its share."""

    def model(exclude=()):
        made = adapted(seed, init="gaussian", exclude=exclude)
        teach(made, epochs=1, seed=seed)
        return made

    def reached(made):
        teach(made, epochs=8, seed=seed)
        return accuracy(made, digits(seed)[2])

    dropped, whole = model(), reached(model())
    result = lora_drop(dropped, [digits(seed)[2].train[0][:200]], threshold=0.9)
    assert result.removed == ("4",)
    assert reached(dropped) > whole - 0.015
    assert max(reached(model(other)) for other in result.kept) < whole - 0.015


def test_dyloras_first_ranks_read_digits_where_those_of_lora_do_not():
    """Valipour et al. 2023, table 2: one training serves every rank, and plain LoRA cut to its first ranks is of no use."""
    dynamic, plain, turned = adapted(rank=8, method="dylora"), adapted(rank=8), digits()[2]
    for model in (dynamic, plain):
        teach(model, epochs=10)
    for rank in (1, 2, 4):
        dynamic.use_rank("default", rank)
        cut = copy.deepcopy(plain)
        for name in cut.layers:
            held = part(cut, name)
            held.lora_A.assign(np.where(np.arange(8) < rank, held.lora_A.numpy(), 0))
        assert accuracy(dynamic, turned) > 0.65 > 0.4 > accuracy(cut, turned)


METHODS = {"0": "dora", "2": "ia3", "4": "lokr"}


def test_methods_of_several_layers_train_together(tmp_path):
    """As `layer_pattern` says; every one of them learns, and without any of them the loss is higher."""
    model, turned = adapted(layer_pattern={name: {"method": method} for name, method in METHODS.items()}), digits()[2]
    before = {name: array.copy() for name, array in model.state().items()}
    losses = teach(model, epochs=8, lr=0.03)
    assert {name: part(model, name).method.name for name in model.layers} == METHODS
    changed = {name for name, array in model.state().items() if not np.array_equal(array, before[name])}
    assert changed == set(before)
    full = loss(model, turned)
    for name in model.layers:
        model.layers[name].activate([])
        assert loss(model, turned) > 1.3 * full
        model.layers[name].activate("default")
    assert full < 0.05 * losses[0]
    model.save(tmp_path / "a.h5")
    again = LoraModel.from_file(classifier(), tmp_path / "a.h5")
    assert np.array_equal(again(turned.held_out[0]).numpy(), model(turned.held_out[0]).numpy())
