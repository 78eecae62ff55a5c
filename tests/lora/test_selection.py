"""What one call selects holds for that call, in that thread, in that model."""

import copy
import pickle
import threading

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, Tensor, no_grad
from loratk.errors import ConfigError, ShapeError, StateError, UnknownNameError
from loratk.lora import PerRow
from loratk.nn import MLP, Linear, Module, Sequential

X = np.random.default_rng(0).standard_normal((6, 5))


def filled(model, seed=1):
    """The model with all its adapters' parameters drawn anew."""
    rng = np.random.default_rng(seed)
    for name in model.adapters:
        model.load_state({key: rng.standard_normal(value.shape).astype(value.dtype) for key, value in model.state(name).items()}, name)
    return model


def make(sizes=(5, 7, 4), configs=None):
    model = LoraModel(MLP(sizes, rng=0, dtype=np.float64))
    for name, config in (configs or {"a": LoraConfig(rank=2), "b": LoraConfig(rank=3, targets="0")}).items():
        model.add_adapter(name, config)
    return filled(model)


def switched(model, active):
    model.set_active(active)
    return model(X).numpy()


@pytest.mark.parametrize("active", ["a", "b", {"a": 0.5, "b": 1.0}, {"b": -2.0}, None])
def test_a_call_computes_what_the_switched_model_computes(active):
    model = make()
    want = switched(model, active or ())
    for other in ((), "b", "a"):
        model.set_active(other)
        for _ in range(2):
            np.testing.assert_array_equal(model(X, adapter=active).numpy(), want)
        assert model.active == ({other: 1.0} if other else {})
        np.testing.assert_array_equal(model(X).numpy(), switched(make(), other))


def test_a_call_leaves_nothing_behind_even_when_it_fails():
    model = make()
    want = model(X).numpy()
    with pytest.raises(ShapeError):
        model(np.ones((3, 4)), adapter="a")
    np.testing.assert_array_equal(model(X).numpy(), want)


def test_changed_values_and_adapters_show_at_the_next_call():
    model = make()
    before = model(X, adapter="a").numpy()
    model.load_state({key: 2 * value for key, value in model.state("a").items()}, "a")
    assert not np.allclose(model(X, adapter="a").numpy(), before)
    model.remove_adapter("a")
    with pytest.raises(UnknownNameError, match=r"There is no adapter 'a'. Adapters: 'b'"):
        model(X, adapter="a")
    model.add_adapter("a", LoraConfig(rank=1))
    np.testing.assert_array_equal(model(X, adapter="a").numpy(), model(X, adapter=None).numpy())


@pytest.mark.parametrize(
    ("adapter", "kind", "message"),
    [
        ("c", UnknownNameError, "no adapter 'c'. Adapters: 'a', 'b'"),
        ({"a": 1.0, "c": 1.0}, UnknownNameError, "no adapter 'c'"),
        (["a"] * 5 + ["c"], UnknownNameError, "no adapter 'c'"),
        ({"a": float("nan")}, ConfigError, "weight of adapter 'a' must be a finite number"),
        (3, ConfigError, "adapter must be a name, a dict of names and weights"),
        (["a", 3], ConfigError, "found 3 for row 1"),
    ],
)
def test_selections_that_make_no_sense(adapter, kind, message):
    with pytest.raises(kind, match=message):
        make()(X, adapter=adapter)


def test_a_selection_is_refused_while_merged_or_switched_off():
    model = make()
    model(X, adapter="a")
    model.merge("a")
    with pytest.raises(StateError, match="Cannot select adapters for a call while 'a' is merged; unmerge"):
        model(X, adapter="b")
    model.unmerge()
    model(X, adapter="b")
    with model.disabled(), pytest.raises(StateError, match="while they are switched off; enable"):
        model(X, adapter="b")
    model(X, adapter="b")


def test_threads_with_different_selections_get_their_own():
    model = make((5, 64, 64, 4))
    choices = ["a", "b", None, {"a": 0.5, "b": 2.0}, ["a", None, "b", "a", "b", None]]
    want = [model(X, adapter=choice).numpy() for choice in choices]
    wrong, start = [], threading.Barrier(len(choices))

    def run(choice, result):
        start.wait()
        for _ in range(150):
            with no_grad():
                got = model(X, adapter=choice).numpy()
            if not np.array_equal(got, result):
                wrong.append(choice)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(choices, want, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_first_calls_of_many_threads_prepare_weights_once():
    for seed in range(5):
        model, results, start = make((5, 300, 300, 4)), [], threading.Barrier(4)

        def run(model=model, results=results, start=start):
            start.wait()
            results.append(model(X, adapter="a").numpy())

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for got in results:
            np.testing.assert_array_equal(got, results[0], err_msg=str(seed))


class Pair(Module):
    """Two models with adapters, one after the other."""

    def __init__(self, one, two):
        self.one, self.two = one, two

    def forward(self, x):
        return self.two(self.one(x, adapter="a"))


def test_models_within_each_other_keep_their_selections_apart():
    one, two = make((5, 6, 5)), make((5, 4, 3))
    two.set_active("b")
    want = two(one(X, adapter="a")).numpy()
    np.testing.assert_array_equal(Pair(one, two)(X).numpy(), want)

    class Calls(Module):
        def __init__(self):
            self._inner, self.fc = one, Linear(5, 5, rng=3, dtype=np.float64)

        def forward(self, x):
            return self.fc(self._inner(x))

    outer = LoraModel(Calls())
    outer.add_adapter("a", LoraConfig(rank=2))
    filled(outer)
    one.set_active("b")
    np.testing.assert_allclose(outer(X, adapter=None).numpy(), outer.base.fc.base(one(X)).numpy())  # the inner model's own choice
    with one.using("a"):
        np.testing.assert_allclose(outer(X, adapter=None).numpy(), outer.base.fc.base(one(X, adapter="a")).numpy())


def test_a_choice_for_one_model_is_none_for_another_with_the_same_names():
    one, two = make(), make()
    for model in (one, two):
        model.set_active("b")
    for model in (one, two):
        model(X, adapter="a")  # the way through it is known now
    want = one(X).numpy()
    with two.using("a"):
        np.testing.assert_array_equal(one(X).numpy(), want)


def test_a_block_selects_for_calls_that_select_nothing():
    model = make()
    with model.using({"a": 2.0}):
        got = model(X).numpy()
        np.testing.assert_array_equal(model(X, adapter="b").numpy(), switched(make(), "b"))
    np.testing.assert_array_equal(got, switched(model, {"a": 2.0}))


def test_copies_have_choices_of_their_own():
    model = make()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with other.using("a"):
            np.testing.assert_array_equal(model(X).numpy(), model(X, adapter=None).numpy())
            np.testing.assert_array_equal(other(X).numpy(), model(X, adapter="a").numpy())


def test_gradients_are_those_of_the_switched_model():
    model = make()
    model.set_active("b")
    x = Tensor(X, requires_grad=True)
    model(x, adapter="a").sum().backward()
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    other = make()
    other.set_active("a")
    y = Tensor(X, requires_grad=True)
    other(y).sum().backward()
    want = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    np.testing.assert_array_equal(x.grad, y.grad)


def test_an_init_that_moves_the_base_is_taken_off_for_its_own_calls_alone():
    model = make(configs={"a": LoraConfig(rank=2), "p": LoraConfig(rank=2, init="pissa"), "q": LoraConfig(rank=1, init="pissa")})
    want = {name: switched(model, name) for name in ("a", "p", "q")}
    model.set_active(())
    for _ in range(2):
        for name in ("p", "a", "q", "p"):
            np.testing.assert_array_equal(model(X, adapter=name).numpy(), want[name])


def test_modules_that_take_an_argument_named_adapter_can_be_called_within_a_block():
    class Takes(Module):
        def __init__(self):
            self.fc = Linear(5, 4, rng=0, dtype=np.float64)

        def forward(self, x, adapter=None):
            return self.fc(x)

    model = filled(LoraModel.adapt(Sequential(Takes()), LoraConfig(rank=1), adapter="a"))
    np.testing.assert_array_equal(model(X, adapter="a").numpy(), model(X).numpy())


def test_rows_of_a_reshaped_batch_need_to_be_told():
    class Flat(Module):
        def __init__(self):
            self.fc = Linear(5, 4, rng=0, dtype=np.float64)

        def forward(self, x):
            return self.fc(x.reshape(-1, 5)).reshape(2, 3, 4)

    model = LoraModel(Flat())
    for name in "ab":
        model.add_adapter(name, LoraConfig(rank=2))
    filled(model)
    x, names = Tensor(X.reshape(2, 3, 5)), ["a", "b"]
    with pytest.raises(ShapeError, match=r"2 rows were given adapters; layer 'fc' must have them on axis 0, found shape \(6, 5\)"):
        model(x, adapter=names)
    got = model(x, adapter=PerRow(names, flattened=True)).numpy()
    for row, name in enumerate(names):
        np.testing.assert_allclose(got[row], model(x, adapter=name).numpy()[row], rtol=1e-12)
    with pytest.raises(ShapeError, match="or a multiple of them"):
        model(x, adapter=PerRow(["a"] * 4, flattened=True))
