"""Optimisers: the updates by hand, groups, what they refuse, and resuming."""

import math

import numpy as np
import pytest

from loratk.errors import ConfigError, FormatError, ShapeError, StateError
from loratk.kernels import Backend, get_backend
from loratk.nn import MLP, SGD, Adam, AdamW, Buffer, Linear, MSELoss, Optimizer, Parameter, linear_warmup

OTHER = Backend("other", get_backend("reference").kernels)
KINDS = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (Adam, {"lr": 0.01, "weight_decay": 0.1}),
    (AdamW, {"lr": 0.01}),
]


def parameter(*values, dtype=np.float64, backend="reference"):
    return Parameter(np.array(values, dtype), backend=backend)


def stepped(make, gradients, start=(1.0, -2.0)):
    """The values after each step with the given gradients."""
    p, values = parameter(*start), []
    optimizer = make([p])
    for gradient in gradients:
        p.grad = np.array(gradient)
        optimizer.step()
        values.append(p.numpy().copy())
    return np.array(values)


# The updates, worked out by hand


def test_plain_gradient_descent():
    got = stepped(lambda ps: SGD(ps, lr=0.5), [[1.0, 2.0], [0.0, -4.0]])
    assert got.tolist() == [[0.5, -3.0], [0.5, -1.0]]


def test_momentum_and_nesterov():
    gradients = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    heavy = stepped(lambda ps: SGD(ps, lr=1.0, momentum=0.5), gradients)
    assert heavy[:, 0].tolist() == [0.0, -1.5, -3.25]
    ahead = stepped(lambda ps: SGD(ps, lr=1.0, momentum=0.5, nesterov=True), gradients)
    assert ahead[:, 0].tolist() == [-0.5, -2.25, -4.125]


def test_weight_decay_of_sgd_and_adam_enters_the_gradient_and_adamws_does_not():
    zero = [[0.0, 0.0]]
    np.testing.assert_allclose(stepped(lambda ps: SGD(ps, lr=0.1, weight_decay=0.5), zero), [[0.95, -1.9]], rtol=1e-14)
    np.testing.assert_allclose(stepped(lambda ps: AdamW(ps, lr=0.1, weight_decay=0.5), zero), [[0.95, -1.9]], rtol=1e-14)
    np.testing.assert_allclose(stepped(lambda ps: Adam(ps, lr=0.1, weight_decay=0.5), zero), [[0.9, -1.9]], rtol=1e-6)


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_adam_follows_its_algorithm(kind):
    gradients = np.random.default_rng(0).standard_normal((5, 2))
    got = stepped(lambda ps: kind(ps, lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.0), gradients)
    p, m, v = np.array([1.0, -2.0]), 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        p = p - 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
        np.testing.assert_allclose(got[t - 1], p, rtol=1e-13)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_training_lowers_the_loss_and_steps_are_in_place(kind, options, dtype, backend):
    rng = np.random.default_rng(0)
    model = MLP([3, 8, 1], rng=0, dtype=dtype).to(backend)
    x = rng.standard_normal((32, 3)).astype(dtype)
    y = x[:, :1] * 0.5 - x[:, 1:2]
    optimizer = kind(model.trainable(), **options)
    arrays = [p.data for p in model.parameters()]
    losses = []
    for _ in range(60):
        loss = MSELoss()(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.data is array and p.dtype == dtype and p.grad is None for p, array in zip(model.parameters(), arrays, strict=True))


def test_nothing_is_stale_after_steps_and_freezing():
    layer = Linear(2, 2, rng=0).to("reference")
    x = np.eye(2, dtype=np.float32)
    layer.weight.freeze()
    layer(x)  # prepares the weight
    layer.weight.unfreeze()
    optimizer = SGD(layer.trainable(), lr=1.0)
    layer(x).sum().backward()
    optimizer.step()
    want = layer(x).numpy()
    layer.weight.freeze()
    np.testing.assert_array_equal(layer(x).numpy(), want)
    assert not np.array_equal(want, Linear(2, 2, rng=0).to("reference")(x).numpy())


# Which parameters move


def test_a_parameter_without_a_gradient_stays_as_it_is():
    a, b = parameter(1.0), parameter(1.0)
    optimizer = AdamW([a, b], lr=0.1)
    a.grad = np.array([1.0])
    optimizer.step()
    assert b.numpy().tolist() == [1.0]
    state = optimizer.state_dict()
    assert (state["0.steps"], state["1.steps"], state["1.m"].tolist()) == (1, 0, [0.0])
    b.grad = np.array([1.0])
    optimizer.step()
    assert b.numpy()[0] == pytest.approx(0.9 * 1.0 - 0.1 * 0.01, abs=1e-8), "its first step is a first step of Adam"


def test_a_parameter_frozen_later_stays_as_it_is():
    a, b = parameter(1.0), parameter(1.0)
    optimizer = SGD([a, b], lr=1.0)
    b.freeze()
    (a * 2.0 + b).backward()
    optimizer.step()
    assert (a.numpy().tolist(), b.numpy().tolist()) == ([-1], [1])


def test_a_step_without_any_gradient_is_an_error():
    optimizer = SGD([parameter(1.0)], lr=1.0)
    with pytest.raises(StateError, match=r"no gradient on any parameter; call backward\(\)"):
        optimizer.step()
    assert optimizer.steps == 0


@pytest.mark.parametrize("change", ["gradient", "parameter"])
def test_a_shape_that_no_longer_fits_is_an_error_before_anything_moves(change):
    a, b = parameter(1.0), parameter(1.0, 2.0)
    optimizer = Adam([a, b], lr=1.0)
    a.grad, b.grad = np.array([1.0]), np.array([1.0, 1.0])
    if change == "gradient":
        b.grad = np.ones(3)
    else:
        b.data = np.ones(3)
        b.grad = np.ones(3)
    with pytest.raises(ShapeError, match="Parameter 1 has shape"):
        optimizer.step()
    assert a.numpy().tolist() == [1.0]
    assert optimizer.state_dict()["0.steps"] == 0


# Groups


def test_lora_plus_is_two_groups():
    model = MLP([2, 3, 1], rng=0, dtype=np.float64).to("reference")
    named = dict(model.named_parameters())
    lora_a = [p for name, p in named.items() if name.endswith("weight")]
    lora_b = [p for name, p in named.items() if name.endswith("bias")]
    optimizer = AdamW([{"params": lora_a}, {"params": iter(lora_b), "lr": 16e-3, "weight_decay": 0.0}], lr=1e-3, schedule=lambda t: 0.5)
    assert optimizer.lrs == (0.0005, 0.008)
    assert optimizer.lr == 0.0005
    before = {name: p.numpy().copy() for name, p in named.items()}
    for p in named.values():
        p.grad = np.ones(p.shape)
    optimizer.step()
    for name, p in named.items():
        lr, decay = (0.0005, 0.01) if name.endswith("weight") else (0.008, 0.0)
        np.testing.assert_allclose(p.numpy(), before[name] * (1 - lr * decay) - lr, rtol=1e-6)


def test_groups_may_differ_in_whether_they_have_momentum():
    a, b = parameter(1.0), parameter(1.0)
    optimizer = SGD([{"params": [a], "momentum": 0.9}, {"params": [b]}], lr=0.1)
    assert sorted(optimizer.state_dict()) == ["0.steps", "0.velocity", "1.steps", "steps"]


def test_the_options_of_a_group_can_be_read_but_not_written():
    optimizer = SGD([parameter(1.0)], lr=0.1)
    assert dict(optimizer.groups[0].options) == {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    with pytest.raises(TypeError):
        optimizer.groups[0].options["lr"] = 1.0


def test_schedule_gives_the_rate_of_each_step():
    p = parameter(0.0)
    optimizer = SGD([p], lr=1.0, schedule=linear_warmup(3))
    seen = []
    for _ in range(5):
        p.grad, before = np.array([-1.0]), p.numpy()[0]
        seen.append(optimizer.lr)
        optimizer.step()
        assert p.numpy()[0] - before == pytest.approx(seen[-1])
    assert seen == [0.25, 0.5, 0.75, 1, 1]


def test_repr_tells_what_it_trains():
    assert repr(SGD([parameter(1.0), parameter(2.0)], lr=0.1)) == "SGD(parameters=2, groups=1, lr=0.1, steps=0)"


# What optimisers refuse

NUMBERS = [math.nan, math.inf, -1, "1", None, True, [1]]


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        *[(kind, {"lr": 0.1, name: bad}, [name, repr(bad)]) for kind in (SGD, AdamW) for name in ("lr", "weight_decay") for bad in NUMBERS],
        *[(SGD, {"lr": 0.1, "momentum": bad}, ["momentum", repr(bad)]) for bad in [*NUMBERS, 1.0]],
        *[(Adam, {"eps": bad}, ["eps", repr(bad)]) for bad in [*NUMBERS, 0.0]],
        *[(Adam, {"betas": (0.9, bad)}, ["betas[1]", repr(bad)]) for bad in [*NUMBERS, 1.0]],
        (Adam, {"betas": 0.9}, ["betas must be two numbers"]),
        (Adam, {"betas": (0.9,)}, ["betas must be two numbers"]),
        (SGD, {"lr": 0.1, "nesterov": True}, ["nesterov needs a momentum"]),
        (SGD, {"lr": 0.1, "nesterov": 1, "momentum": 0.9}, ["nesterov must be True or False"]),
        (SGD, {"lr": 0.1, "schedule": 0.5}, ["schedule must be a function"]),
    ],
)
def test_options_that_make_no_sense(kind, options, words):
    with pytest.raises(ConfigError) as error:
        kind([parameter(1.0)], **options)
    assert all(word in str(error.value) for word in words), str(error.value)
    groups = {name: value for name, value in options.items() if name != "schedule"}
    if groups == options:
        with pytest.raises(ConfigError):
            kind([{"params": [parameter(1.0)], **groups}], lr=0.1)


P = parameter(1.0, 2.0)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ([], ["no parameters to train", "frozen"]),
        (iter(()), ["no parameters to train"]),
        (P, ["a list of parameters, found a Parameter"]),
        (3, ["a list of parameters, found a int"]),
        ({"params": [P]}, ["a list of parameters, found a dict"]),
        (Linear(2, 2, rng=0), ["the module Linear", "trainable()"]),
        ([Linear(2, 2, rng=0)], ["group 0, parameter 0 is a Linear, not a Parameter"]),
        ([P, P], ["group 0, parameter 1, of shape (2,), is group 0, parameter 0 again"]),
        ([{"params": [P]}, {"params": [P]}], ["group 1, parameter 0, of shape (2,), is group 0, parameter 0 again"]),
        ([{"params": [P]}, {"params": []}], ["group 1 is empty"]),
        ([{"params": P}], ["group 0", "found a Parameter"]),
        ([{"params": [P], "rate": 1.0}], ["group 0", "unknown keys 'rate'", "'lr'", "'momentum'"]),
        ([{"lr": 1.0}], ["group 0", "no 'params'"]),
        ([P, {"params": [P]}], ["parameters or groups, not both"]),
        ([Buffer(np.ones(2))], ["frozen"]),
        ([P, Parameter(np.ones((2, 3)), requires_grad=False), 7], ["parameter 1, of shape (2, 3), is frozen", "parameter 2 is a int"]),
    ],
)
def test_parameters_that_cannot_be_trained(parameters, words):
    with pytest.raises(ConfigError) as error:
        SGD(parameters, lr=0.1)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("factor", [math.nan, -0.5, math.inf, None])
def test_a_schedule_that_gives_nonsense_stops_the_step(factor):
    p = parameter(1.0)
    optimizer = SGD([p], lr=0.1, schedule=lambda t: factor)
    p.grad = np.array([1.0])
    with pytest.raises(ConfigError, match=r"schedule\(0\)"):
        optimizer.step()
    assert p.numpy().tolist() == [1.0]


# Saving and resuming


def trained(model, optimizer, steps, rng):
    for _ in range(steps):
        x = rng.standard_normal((8, 3)).astype(np.float32)
        MSELoss()(model(x), x[:, :1]).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_resuming_gives_the_bits_of_an_uninterrupted_run(kind, options, backend):
    def fresh():
        model = MLP([3, 5, 1], rng=0).to(backend)
        return model, kind(model.trainable(), **options, schedule=linear_warmup(4, 20))

    rng = np.random.default_rng(1)
    want, optimizer = fresh()
    trained(want, optimizer, 3, rng)
    weights, state = want.state_dict(), optimizer.state_dict()
    assert all(type(name) is str and type(array) is np.ndarray for name, array in state.items())
    middle = rng.bit_generator.state
    trained(want, optimizer, 4, rng)

    got, resumed = fresh()
    got.load_state_dict(weights)
    resumed.load_state_dict(state)
    rng.bit_generator.state = middle
    trained(got, resumed, 4, rng)
    for name, array in want.state_dict().items():
        np.testing.assert_array_equal(got.state_dict()[name], array)
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name], array)


def test_a_state_is_a_copy_both_ways():
    p = parameter(1.0)
    optimizer = Adam([p], lr=0.1)
    p.grad = np.array([1.0])
    optimizer.step()
    state = optimizer.state_dict()
    state["0.m"][:] = 7
    assert optimizer.state_dict()["0.m"][0] != 7
    optimizer.load_state_dict(state)
    optimizer.step()
    assert state["0.m"].tolist() == [7]


def test_a_state_that_does_not_fit_is_refused_whole_with_every_fault():
    optimizer = Adam([parameter(1.0, 2.0), parameter(1.0)], lr=0.1)
    state = optimizer.state_dict()
    before = optimizer.state_dict()
    del state["0.m"]
    state |= {"2.m": np.zeros(3), "1.v": np.zeros(2), "1.m": np.zeros(1, np.float32), "0.steps": np.array(-1), "steps": np.array(5)}
    with pytest.raises(FormatError) as error:
        optimizer.load_state_dict(state)
    for fault in [
        "missing: '0.m' (2,)",
        "unexpected: '2.m' (3,)",
        "wrong shape: '1.v' must be (1,), found (2,)",
        "wrong dtype: '1.m' must be float64, found float32",
        "wrong number: '0.steps' must be at least 0, found -1",
    ]:
        assert fault in str(error.value)
    assert all(np.array_equal(array, before[name]) for name, array in optimizer.state_dict().items())


def test_the_state_of_another_kind_is_refused():
    with pytest.raises(FormatError, match="does not fit the SGD"):
        SGD([parameter(1.0)], lr=0.1, momentum=0.5).load_state_dict(Adam([parameter(1.0)]).state_dict())


def test_state_follows_parameters_to_another_backend():
    moved, stayed = parameter(1.0), parameter(1.0)
    optimizers = [Adam([moved], lr=0.1), Adam([stayed], lr=0.1)]
    for step in range(3):
        if step == 1:
            moved.move(OTHER)
        for p, optimizer in zip((moved, stayed), optimizers, strict=True):
            p.grad = np.array([step - 0.5])
            optimizer.step()
    assert moved.backend is OTHER
    assert moved.numpy().tolist() == stayed.numpy().tolist()


def test_an_optimiser_of_ones_own():
    class SignDescent(Optimizer):
        """p -= lr sign(g)."""

        def __init__(self, parameters, *, lr, schedule=None):
            super().__init__(parameters, schedule, lr=lr)

        def check(self, name, value):
            return float(value)

        def memory(self, options):
            return ()

        def update(self, parameter, arrays, options, *, lr, step):
            parameter.data -= lr * np.sign(parameter.grad)

    p = parameter(1.0, 1.0)
    p.grad = np.array([3.0, -0.1])
    SignDescent([p], lr=0.5).step()
    assert p.numpy().tolist() == [0.5, 1.5]
