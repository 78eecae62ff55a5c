import copy
import pickle

import numpy as np
import pytest

from loratk.errors import ConfigError, DtypeError, FormatError, UnknownNameError
from loratk.nn import MLP, BatchNorm, Buffer, Dropout, Embedding, Linear, Module, Parameter, ReLU, Sequential


class Net(Module):
    def __init__(self, rng=0):
        rng = np.random.default_rng(rng)
        self.body = MLP([4, 5, 3], rng=rng)
        self.norm = BatchNorm(3)
        self.scale = Parameter(np.full(3, 2.0, np.float32))
        self.drop = Dropout(0.5, rng)

    def forward(self, x):
        return self.drop(self.norm(self.body(x))) * self.scale


NAMES = ["scale", "body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias", "norm.weight", "norm.bias"]


def test_parameters_have_dotted_names_parents_first():
    assert [name for name, _ in Net().named_parameters()] == NAMES


def test_the_state_holds_buffers_too():
    assert sorted(Net().state_dict()) == sorted([*NAMES, "norm.running_mean", "norm.running_var"])


def test_modules_are_listed_parents_before_children():
    assert [name for name, _ in Net().modules()] == ["", "body", "body.0", "body.1", "body.2", "norm", "drop"]


def test_the_repr_is_a_tree():
    assert repr(Net()) == (
        "Net(\n"
        "  (body): MLP(\n"
        "    (0): Linear(4, 5, bias=True)\n"
        "    (1): ReLU()\n"
        "    (2): Linear(5, 3, bias=True)\n"
        "  )\n"
        "  (norm): BatchNorm(3, eps=1e-05, momentum=0.1)\n"
        "  (drop): Dropout(p=0.5)\n"
        ")"
    )


def test_get_finds_a_module_by_its_dotted_name():
    net = Net()
    assert net.get("body.2") is net.body[2]
    assert net.get("") is net


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bdy", "There is no module 'bdy': the root has no child 'bdy'. Its children: 'body', 'drop', 'norm'."),
        ("body.7", "There is no module 'body.7': body has no child '7'. Its children: '0', '1', '2'."),
        ("body.0.weight", "There is no module 'body.0.weight': body.0 has no child 'weight'. Its children: none."),
    ],
)
def test_get_names_what_is_there_instead(name, message):
    with pytest.raises(UnknownNameError) as error:
        Net().get(name)
    assert str(error.value) == message


def test_replace_puts_a_module_in_the_same_place():
    net, new = Net(), Linear(5, 3, rng=9)
    net.replace("body.2", new)
    assert net.body[2] is new
    assert [name for name, _ in net.named_parameters()] == NAMES


def test_replace_refuses_what_it_cannot_do():
    with pytest.raises(UnknownNameError, match=r"no module 'body\.9'"):
        Net().replace("body.9", ReLU())
    with pytest.raises(ConfigError, match="cannot replace itself"):
        Net().replace("", ReLU())
    with pytest.raises(DtypeError, match="Only a Module can stand at 'norm', found int"):
        Net().replace("norm", 3)


def test_a_state_goes_from_one_module_to_another(rng):
    a, b = Net(0), Net(1)
    b.load_state_dict(a.state_dict())
    for name, want in a.state_dict().items():
        np.testing.assert_array_equal(b.state_dict()[name], want)
    x = rng.standard_normal((6, 4)).astype(np.float32)
    np.testing.assert_array_equal(a.eval()(x).numpy(), b.eval()(x).numpy())


def test_a_state_is_a_copy():
    net = Net()
    net.state_dict()["scale"][:] = 0
    np.testing.assert_array_equal(net.scale.numpy(), 2)


def test_a_state_that_does_not_fit_lists_every_fault_and_loads_nothing():
    net, state = Net(0), Net(1).state_dict()
    want = net.state_dict()
    del state["norm.bias"]
    state["extra"] = np.zeros(2)
    state["body.0.weight"] = state["body.0.weight"].T
    state["scale"] = state["scale"].astype(np.float64)
    with pytest.raises(FormatError) as error:
        net.load_state_dict(state)
    assert str(error.value) == (
        "This state does not fit the Net (nothing was loaded):\n"
        "  - missing: 'norm.bias' (3,)\n"
        "  - unexpected: 'extra' (2,)\n"
        "  - wrong dtype: 'scale' must be float32, found float64; convert it with astype\n"
        "  - wrong shape: 'body.0.weight' must be (4, 5), found (5, 4)"
    )
    for name, values in net.state_dict().items():
        np.testing.assert_array_equal(values, want[name])


def test_loading_into_a_frozen_module_drops_the_handle(rng):
    a, b = Linear(4, 3, rng=0).freeze(), Linear(4, 3, rng=1)
    x = rng.standard_normal((2, 4)).astype(np.float32)
    a(x)
    a.load_state_dict(b.state_dict())
    assert a.weight.frozen
    np.testing.assert_array_equal(a(x).numpy(), b(x).numpy())


def test_freeze_reaches_every_parameter_and_unfreeze_undoes_it():
    net = Net()
    total = net.count()
    assert net.freeze() is net
    assert net.trainable() == []
    assert net.count(trainable=True) == 0
    assert all(not parameter.numpy().flags.writeable for parameter in net.parameters())
    net.unfreeze()
    assert net.count(trainable=True) == total == 4 * 5 + 5 + 5 * 3 + 3 + 3 + 3 + 3


def test_a_shared_parameter_counts_once():
    a = Linear(4, 4, rng=0)
    b = Linear(4, 4, rng=1)
    b.weight = a.weight
    both = Sequential(a, b)
    assert [name for name, _ in both.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    assert both.count() == 16 + 4 + 4
    assert sorted(both.state_dict()) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_train_and_eval_reach_the_whole_tree():
    net = Net()
    assert net.eval() is net
    assert not any(module.training for _, module in net.modules())
    assert all(module.training for _, module in net.train().modules())


def test_zero_grad_forgets_all_gradients(rng):
    net = Net()
    net(rng.standard_normal((6, 4)).astype(np.float32)).sum().backward()
    assert net.scale.grad is not None
    net.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_generators_are_found_by_name():
    net = Net()
    assert net.generators() == {"drop.rng": net.drop.rng}


def test_to_moves_parameters_and_buffers(rng):
    net = Net().eval()
    x = rng.standard_normal((6, 4)).astype(np.float32)
    want = net(x).numpy()
    assert net.to("reference") is net
    assert net.backend.name == "reference"
    got = net(x)
    assert got.backend.name == "reference"
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"])
def test_a_copy_of_a_module_is_independent(duplicate, rng):
    net, x = Net(), rng.standard_normal((6, 4)).astype(np.float32)
    net.body.freeze()
    net(x)  # so that handles, graph and running statistics are there
    got = duplicate(net)
    assert [p.frozen for p in got.parameters()] == [p.frozen for p in net.parameters()]
    want = net(x).numpy()
    np.testing.assert_array_equal(got(x).numpy(), want)  # the same dropout mask too
    got.unfreeze()
    for parameter in got.parameters():
        parameter.data[:] = 0
    got.norm.running_mean.assign(np.ones(3, np.float32))
    assert net.body[0].weight.frozen
    assert np.abs(net.body[0].weight.numpy()).min() > 0
    assert not np.array_equal(net.norm.running_mean.numpy(), np.ones(3))


def test_a_copy_keeps_what_is_shared():
    a, b = Linear(4, 4, rng=0), Linear(4, 4, rng=1)
    b.weight = a.weight
    got = copy.deepcopy(Sequential(a, b))
    assert got[0].weight is got[1].weight
    assert got[0].weight is not a.weight


def test_the_same_seed_gives_the_same_bits_and_one_generator_different_layers():
    np.testing.assert_array_equal(Linear(8, 8, rng=3).weight.numpy(), Linear(8, 8, rng=np.random.default_rng(3)).weight.numpy())
    rng = np.random.default_rng(3)
    assert not np.array_equal(Linear(8, 8, rng=rng).weight.numpy(), Linear(8, 8, rng=rng).weight.numpy())
    net = MLP([8, 8, 8], rng=0)
    assert not np.array_equal(net[0].weight.numpy(), net[2].weight.numpy())


@pytest.mark.parametrize("rng", [-1, None, 1.5, True, "0"])
def test_a_seed_is_a_generator_or_a_natural_number(rng):
    with pytest.raises(ConfigError, match=r"rng must be a numpy.random.Generator or a seed .* found"):
        Linear(2, 2, rng=rng)


def test_modules_in_a_list_are_refused_instead_of_overlooked():
    net = Net()
    with pytest.raises(DtypeError, match=r"Net\.layers is a list of modules or parameters.*Sequential"):
        net.layers = [ReLU(), ReLU()]


@pytest.mark.parametrize(("name", "message"), [("input", "is taken"), ("training", "is taken"), ("a.b", "holds a dot")])
def test_a_child_cannot_take_a_name_that_would_break_the_tree(name, message):
    with pytest.raises(ConfigError, match=f"Net.{name} {message}"):
        setattr(Net(), name, ReLU())


def test_private_attributes_are_not_looked_at():
    net = Net()
    net._helper, net._list = Linear(2, 2, rng=0), [ReLU()]
    assert [name for name, _ in net.named_parameters()] == NAMES


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match=r"Module defines no forward\(\)"):
        Module()(1)


def test_buffers_are_not_parameters():
    net = Net()
    assert all(not isinstance(parameter, Buffer) for parameter in net.parameters())
    net.unfreeze()
    assert net.norm.running_mean.frozen


def test_sequential_refuses_what_is_no_module():
    with pytest.raises(DtypeError, match="Sequential takes modules, found function at place 1"):
        Sequential(ReLU(), lambda x: x)


def test_sequential_is_a_sequence():
    layers = [Linear(2, 3, rng=0), ReLU(), Linear(3, 1, rng=1)]
    net = Sequential(*layers)
    assert len(net) == 3
    assert list(net) == layers
    assert net[-1] is layers[2]


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ([3], {}, r"at least an input and an output size, found \[3\]"),
        ([3, 0], {}, "size 1 must be a positive integer, found 0"),
        ([3, 2.0], {}, "size 1 must be a positive integer, found 2.0"),
        ([3, 2, 1], {"activation": "relo"}, "Unknown activation 'relo'. Activations: 'gelu'"),
        ([3, 2], {"dtype": np.float16}, "dtype must be float32 or float64"),
    ],
)
def test_mlp_says_what_is_wrong(sizes, options, message):
    with pytest.raises((ConfigError, UnknownNameError, DtypeError), match=message):
        MLP(sizes, rng=0, **options)


def test_mlp_puts_activations_between_layers():
    assert [type(layer).__name__ for layer in MLP([4, 3, 2], rng=0)] == ["Linear", "ReLU", "Linear"]
    got = MLP([4, 3, 2], activation="gelu", output_activation=True, rng=0)
    assert [type(layer).__name__ for layer in got] == ["Linear", "GELU", "Linear", "GELU"]


def test_embedding_takes_lists_of_numbers(backend):
    layer = Embedding(5, 3, rng=0).to(backend)
    y = layer([[0, 4], [4, 4]])
    np.testing.assert_array_equal(y.numpy(), layer.weight.numpy()[[[0, 4], [4, 4]]])
    y.sum().backward()
    np.testing.assert_array_equal(layer.weight.grad, np.array([1, 0, 0, 0, 3.0])[:, None] * np.ones(3))
