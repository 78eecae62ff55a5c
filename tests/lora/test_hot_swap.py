"""Another adapter in an adapter's place: strict, all or nothing, and never half seen."""

import threading

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, load_adapter, no_grad
from loratk.errors import FormatError, StateError, UnknownNameError
from loratk.nn import MLP, Linear, Module, Sequential

X = np.random.default_rng(0).standard_normal((6, 5))


def make(config=None, name="a", seed=1, sizes=(5, 7, 4)):
    model = LoraModel(MLP(sizes, rng=0, dtype=np.float64))
    model.add_adapter(name, config or LoraConfig(rank=2))
    rng = np.random.default_rng(seed)
    model.load_state({key: rng.standard_normal(value.shape) for key, value in model.state(name).items()}, name)
    model.set_active(name)
    return model


@pytest.fixture
def other(tmp_path):
    """A file with an adapter 'b' of another rank and scaling, and what its model computes."""
    model = make(LoraConfig(rank=3, alpha=12.0, rslora=True), "b", seed=2)
    path = tmp_path / "b.h5"
    model.save(path)
    return path, model(X).numpy()


def test_an_adapter_of_another_rank_takes_its_place_without_new_layers(other):
    path, want = other
    model = make()
    layers, parameters = list(model.layers.values()), dict(model.named_parameters())
    model(X)
    model.hot_swap("a", path)
    np.testing.assert_array_equal(model(X).numpy(), want)
    np.testing.assert_array_equal(model(X, adapter=["a"] * 6).numpy().shape, want.shape)
    assert list(model.layers.values()) == layers
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in parameters.items())
    assert list(model.adapters) == ["a"]
    assert model.adapters["a"].rank == 3
    assert (model.layers["0"].adapter("a").block("").rank, model.active) == (3, {"a": 1.0})


def test_a_swapped_adapter_trains_and_saves_as_what_it_is_now(other, tmp_path):
    model = make()
    model.hot_swap("a", other[0])
    model(X).sum().backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in model.trainable())
    model.save(tmp_path / "again.h5")
    np.testing.assert_array_equal(
        make(name="c").unload() and LoraModel.from_file(MLP((5, 7, 4), rng=0, dtype=np.float64), tmp_path / "again.h5")(X).numpy(), other[1]
    )


def test_a_state_in_memory_and_one_of_several_in_a_file(other, tmp_path):
    model = make()
    model.hot_swap("a", load_adapter(other[0]).states[0])
    np.testing.assert_array_equal(model(X).numpy(), other[1])
    two = make(name="c")
    two.add_adapter("d", LoraConfig(rank=1))
    two.save(tmp_path / "two.npz")
    with pytest.raises(UnknownNameError, match="holds 'c', 'd'; say which one by adapter="):
        model.hot_swap("a", tmp_path / "two.npz")
    model.hot_swap("a", tmp_path / "two.npz", adapter="c")
    np.testing.assert_array_equal(model(X).numpy(), make()(X).numpy())


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_frozen_stays_frozen(other, frozen):
    model = make()
    if frozen:
        model.freeze()
    model(X, adapter=["a", None] * 3)
    model.hot_swap("a", other[0])
    assert all(parameter.frozen == frozen for parameter in model.layers["0"].adapter("a").parameters())
    np.testing.assert_array_equal(model(X).numpy(), other[1])
    np.testing.assert_allclose(model(X, adapter=["a", None] * 3).numpy()[::2], other[1][::2], rtol=1e-12)


@pytest.mark.parametrize(
    ("config", "messages"),
    [
        (LoraConfig(rank=2, targets="0"), ["missing: layer '2' has no part in it"]),
        (LoraConfig(rank=2, method="dora"), ["layer '0': its method is 'dora', that of 'a' is 'lora'", "layer '2': its method"]),
        (LoraConfig(rank=2, bias="lora_only"), ["layer '0': the bias trains in it, but not in 'a'"]),
        (LoraConfig(rank=2, init="pissa"), ["layer '0': it has"]),
    ],
)
def test_what_sits_otherwise_is_refused_as_a_whole(config, messages, tmp_path):
    make(config, "b").save(tmp_path / "b.h5")
    model = make()
    want, names = model(X).numpy(), [name for name, _ in model.named_parameters()]
    with pytest.raises(FormatError, match=r"The adapter 'b' of '.*b.h5' cannot take the place of 'a' \(nothing was changed\):") as error:
        model.hot_swap("a", tmp_path / "b.h5")
    for message in messages:
        assert message in str(error.value)
    np.testing.assert_array_equal(model(X).numpy(), want)
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.adapters) == ["a"]


def test_an_adapter_that_reaches_further_is_refused(tmp_path):
    make(LoraConfig(rank=2), "b").save(tmp_path / "b.h5")
    model = make(LoraConfig(rank=2, targets="0"))
    with pytest.raises(FormatError, match="unexpected: layer '2', which 'a' does not adapt"):
        model.hot_swap("a", tmp_path / "b.h5")
    assert list(model.layers) == ["0"]


def test_a_damaged_file_another_base_and_a_merged_model(other, tmp_path):
    model = make()
    damaged = load_adapter(other[0]).states[0]
    del damaged.tensors["0.lora_B"]
    with pytest.raises(FormatError, match=r"missing: '0.lora_B'"):
        model.hot_swap("a", damaged)
    foreign = make(sizes=(5, 7, 4))
    foreign.base.get("0").base.weight.assign(foreign.base.get("0").base.weight.numpy() * 2)
    with pytest.raises(FormatError, match="was made for another base"):
        foreign.hot_swap("a", other[0])
    foreign.hot_swap("a", other[0], check_base=False)
    with pytest.raises(UnknownNameError, match="no adapter 'x'"):
        model.hot_swap("x", other[0])
    model.merge()
    with pytest.raises(StateError, match="while 'a' is merged"):
        model.hot_swap("a", other[0])
    assert list(model.adapters) == ["a"]


def test_other_threads_see_the_old_adapter_or_the_new_one(tmp_path):
    """Deep, so that a pass takes long enough to be overtaken, were it possible."""
    sizes = (5, *(16,) * 24, 4)
    states, wants = [], []
    for seed in range(2):
        model = make(LoraConfig(rank=1 + seed), "b", seed=seed, sizes=sizes)
        model.save(tmp_path / f"{seed}.npz")
        states.append(load_adapter(tmp_path / f"{seed}.npz").states[0])
        wants.append(model(X).numpy())
    model, seen, wrong, done = make(LoraConfig(rank=1), seed=0, sizes=sizes), set(), [], threading.Event()

    def passes(adapter):
        while not done.is_set():
            with no_grad():
                got = model(X, adapter=adapter).numpy()
            near = [at for at, want in enumerate(wants) if np.allclose(got, want, rtol=1e-9, atol=1e-9)]
            seen.update(near)
            if not near:
                wrong.append(adapter)

    threads = [threading.Thread(target=passes, args=(adapter,)) for adapter in ("a", ["a"] * 6, {"a": 1.0})]
    for thread in threads:
        thread.start()
    for turn in range(40):
        model.hot_swap("a", states[turn % 2], check_base=False)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert seen == {0, 1}


def test_a_swap_waits_for_the_pass_that_runs_and_new_ones_for_the_swap(tmp_path):
    entered, go = threading.Event(), threading.Event()

    class Pause(Module):
        def forward(self, x):
            entered.set()
            assert go.wait(60)
            return x

    def build(seed):
        model = LoraModel(Sequential(Linear(5, 7, rng=0, dtype=np.float64), Pause(), Linear(7, 4, rng=1, dtype=np.float64)))
        model.add_adapter("a", LoraConfig(rank=2))
        rng = np.random.default_rng(seed)
        model.load_state({key: rng.standard_normal(value.shape) for key, value in model.state("a").items()}, "a")
        model.set_active("a")
        return model

    go.set()
    model, new = build(1), build(2)
    old_y, new_y = model(X).numpy(), new(X).numpy()
    new.save(tmp_path / "new.npz")
    go.clear()
    entered.clear()
    results = {}
    running = threading.Thread(target=lambda: results.update(running=model(X).numpy()))
    running.start()
    assert entered.wait(60)
    swapping = threading.Thread(target=lambda: model.hot_swap("a", tmp_path / "new.npz"))
    swapping.start()
    swapping.join(0.3)
    assert swapping.is_alive()
    later = threading.Thread(target=lambda: results.update(later=model(X).numpy()))
    later.start()
    go.set()
    for thread in (running, swapping, later):
        thread.join(60)
    np.testing.assert_array_equal(results["running"], old_y)
    np.testing.assert_array_equal(results["later"], new_y)


def test_a_swap_within_a_pass_is_refused(other):
    class Meddles(Module):
        def __init__(self):
            self.fc = Linear(5, 4, rng=0, dtype=np.float64)

        def forward(self, x):
            holder[0].hot_swap("a", other[0], check_base=False)
            return self.fc(x)

    holder = [LoraModel.adapt(Meddles(), LoraConfig(rank=1), adapter="a")]
    with pytest.raises(StateError, match="cannot be changed from within its own forward pass"):
        holder[0](X)


def test_renaming_keeps_everything_but_the_name():
    model = make()
    model.add_adapter("b", LoraConfig(rank=1))
    model.set_active({"a": 0.5, "b": 2.0})
    want = model(X).numpy()
    model.rename_adapter("a", "first")
    assert (list(model.adapters), model.active) == (["first", "b"], {"first": 0.5, "b": 2.0})
    np.testing.assert_array_equal(model(X).numpy(), want)
    np.testing.assert_array_equal(model(X, adapter={"first": 0.5, "b": 2.0}).numpy(), want)
    with pytest.raises(UnknownNameError, match="no adapter 'a'"):
        model(X, adapter="a")
    with pytest.raises(StateError, match="There is an adapter 'b' already"):
        model.rename_adapter("first", "b")
    with pytest.raises(UnknownNameError, match="no adapter 'a'"):
        model.rename_adapter("a", "c")
    model.merge()
    model.rename_adapter("first", "last")
    assert model.merged == {"last": 0.5, "b": 2.0}
    model.unmerge()
    np.testing.assert_array_equal(model(X).numpy(), want)
