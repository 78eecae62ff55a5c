"""The config of adapters that come from elsewhere."""

import numpy as np
import pytest
from states import module, state

from loratk.errors import ConfigError
from loratk.exchange import config_for
from loratk.lora import LoraConfig, LoraModel
from loratk.nn import MLP


def test_the_commonest_rank_and_alpha_are_the_configs_own():
    got = config_for(state({"h.0.q": module(), "h.1.q": module(), "h.2.q": module(rank=3, alpha=6.0)}))
    assert (got["rank"], got["alpha"], got["rslora"], got["bias"]) == (2, 4.0, False, "none")
    assert got["targets"] == ["h.0.q", "h.1.q", "h.2.q"]
    assert (got["rank_pattern"], got["alpha_pattern"]) == ({"h.2.q": 3}, {"h.2.q": 6.0})


def test_rslora_is_told_from_the_scalings():
    got = config_for(state({"a": module(rank=4, rslora=True), "b": module(rank=9, rslora=True)}))
    assert (got["rslora"], got["alpha"], got["alpha_pattern"]) == (True, 4.0, {})
    odd = config_for(state({"a": module(rank=4), "b": module(rank=4, scaling=3.0)}))
    assert (odd["rslora"], odd["alpha"], odd["alpha_pattern"]) == (False, 4.0, {"b": 12.0})


def test_paths_that_would_mean_others_become_patterns():
    got = config_for(state({"q": module()}), among=["q", "x.q"])
    assert got["targets"] == ["re:q"]
    assert config_for(state({"all-linear": module()}))["targets"] == [r"re:all\-linear"]


def test_a_model_gets_just_these_modules():
    net = MLP([6, 4, 6, 4], rng=0).to("reference")
    model = LoraModel(net)
    model.add_adapter("mine", LoraConfig(**config_for(state({"0": module(), "4": module(rank=3)}))))
    assert sorted({key.rpartition(".")[0] for key in model.state("mine")}) == ["0", "4"]
    assert model.state("mine")["4.lora_A"].shape == (6, 3)


@pytest.mark.parametrize(
    ("modules", "want"),
    [
        ({"a": ({"method": "full"}, {"weight": np.ones((2, 2))})}, "module 'a' replaces or changes a whole module"),
        ({"a": module(experts=2)}, "module 'a' is a stack of experts"),
        ({"a": module(), "b": module(method="dora")}, "one config has one method, found 'dora', 'lora'"),
    ],
)
def test_what_no_config_can_say(modules, want):
    with pytest.raises(ConfigError) as caught:
        config_for(state(modules))
    assert want in str(caught.value)
