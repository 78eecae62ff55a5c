"""Counts and reports: one definition of reduction, the efficiency table, the summary."""

import io

import numpy as np
import pytest
from rich.console import Console

from loratk import LoraConfig, LoraModel, efficiency
from loratk.errors import ConfigError
from loratk.nn import MLP


def test_the_efficiency_table():
    got = [(row.rank, f"{row.parameters:,}", f"{row.reduction:.2%}", f"{row.ratio:.4f}") for row in efficiency(1024, 1024)]
    assert got == [
        (4, "8,192", "99.22%", "0.0078"),
        (8, "16,384", "98.44%", "0.0156"),
        (16, "32,768", "96.88%", "0.0312"),
        (32, "65,536", "93.75%", "0.0625"),
        (64, "131,072", "87.50%", "0.1250"),
    ]


def test_efficiency_refuses_a_rank_that_makes_no_sense():
    with pytest.raises(ConfigError, match="Rank 64"):
        efficiency(1024, 32)


def test_reduction_does_not_overflow():
    assert LoraConfig(rank=8).reduction(65536, 65536) == 1 - 16 / 65536


@pytest.fixture
def model():
    return LoraModel.from_sizes([784, 256, 128, 10], LoraConfig.low_rank(bias="all"), rng=0)


def test_counts(model):
    base = 784 * 256 + 256 * 128 + 128 * 10 + 256 + 128 + 10
    adapter = 4 * (784 + 256 + 256 + 128 + 128 + 10) + 256 + 128 + 10
    got = model.summary()
    assert (got.base, got.adapters, got.trainable) == (base, adapter, adapter)
    assert got.reduction == model.reduction() == 1 - adapter / base
    assert got.bytes_saved == 4 * (base - adapter)
    assert model.count() == base + adapter
    assert model.count(trainable=True) == adapter


def test_only_active_adapters_and_an_unfrozen_base_train(model):
    before = model.count(trainable=True)
    model.add_adapter("second", LoraConfig(rank=2, targets="0"))
    assert model.count(trainable=True) == before
    model.set_active("second")
    assert model.count(trainable=True) == 2 * (784 + 256)
    model.unfreeze_base()
    assert model.count(trainable=True) == 2 * (784 + 256) + model.summary().base
    assert model.reduction() < 0


def test_a_summary_is_plain_text_in_print_and_a_table_in_rich(model):
    text = str(model.summary())
    assert "2.bias" in text
    assert "784 x 256" in text
    assert "\x1b" not in text
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=120).print(model.summary())
    assert "┃" in out.getvalue()
    assert "784 x 256" in out.getvalue()


def test_merged_and_active_are_told(model):
    assert "active: {'default': 1.0}" in str(model.summary())
    model.merge()
    assert "merged: {'default': 1.0}" in str(model.summary())
    assert model.trainable() == []  # what is merged does not act by itself


def test_an_adapter_larger_than_its_base_has_a_negative_reduction():
    model = LoraModel.adapt(MLP([4, 4], bias=False, rng=0), LoraConfig(rank=4))
    assert model.reduction() == 1 - 32 / 16
    assert np.isclose(LoraConfig(rank=8).reduction(10, 10), -0.6)
