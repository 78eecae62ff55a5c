"""Methods that choose ranks while they train, on sideways digits: better than LoRA of as many numbers, wherever these would go."""

from functools import cache

import pytest
from learning_problems import accuracy, adapted, digits, teach

from loratk.nn import CrossEntropyLoss

SEEDS = (0, 1)
NUMBERS = 2 * (64 + 256 + 256 + 128 + 128 + 10)
"""What LoRA of rank 2 trains."""


def trained(seed, lr, **config):
    model = adapted(seed, **config)
    teach(model, epochs=15, lr=lr, seed=seed)
    return model


def loss(model, seed):
    """The mean loss on the images that are held out."""
    x, y = digits(seed)[2].held_out
    return CrossEntropyLoss()(model(x), y).item()


@cache
def loras():
    """The loss of LoRA of rank 2 at its best rate, summed over the seeds."""
    return sum(min(loss(trained(seed, lr, rank=2, alpha=4.0), seed) for lr in (2e-2, 3e-2)) for seed in SEEDS)


@pytest.mark.parametrize(
    ("config", "lr", "share"),
    [
        ({"method": "adalora", "rank": 6, "alpha": 12.0, "options": {"target_rank": 2}}, 0.1, 0.65),
        ({"method": "elastic", "rank": 8, "alpha": 16.0}, 0.02, 0.75),
    ],
    ids=["adalora", "elastic"],
)
def test_chosen_ranks_beat_the_same_rank_everywhere(config, lr, share):
    """Zhang et al. 2023, table 1, at equal budgets; what is left in the end has about the numbers of rank 2."""
    total = 0.0
    for seed in SEEDS:
        model = trained(seed, lr, **config)
        before = loss(model, seed)
        model.compact()
        assert loss(model, seed) == pytest.approx(before, rel=1e-4)
        assert model.count(trainable=True) < 1.2 * NUMBERS
        total += loss(model, seed)
    assert total < share * loras()


def test_soras_gates_vanish_the_more_the_larger_lambda_and_digits_are_read_all_the_same():
    """Ding et al. 2023, section 3.3: what the proximal steps close can be cut for nothing."""
    ranks, right = [], []
    for strength in (0.0, 0.3, 0.6):
        model = trained(0, 1e-2, method="sora", rank=10, alpha=20.0, options={"lambda": strength})
        before = loss(model, 0)
        ranks.append(sum(model.compact().after.values()))
        assert loss(model, 0) == pytest.approx(before, rel=1e-4)
        right.append(accuracy(model, digits()[2]))
    assert ranks[0] == 30 > 24 > ranks[1] > ranks[2]
    assert min(right) > max(right) - 0.02
