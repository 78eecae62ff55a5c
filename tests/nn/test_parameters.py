import copy
import pickle

import numpy as np
import pytest

from loratk.autograd import Tensor
from loratk.errors import DtypeError, ShapeError, StateError
from loratk.kernels import get_backend
from loratk.nn import Buffer, Parameter


def test_it_copies_what_it_is_made_from(rng):
    array = rng.standard_normal((3, 2))
    parameter = Parameter(array)
    want = array.copy()
    array[:] = 0
    np.testing.assert_array_equal(parameter.numpy(), want)


def test_its_array_is_read_only_exactly_while_it_is_frozen(rng):
    parameter = Parameter(rng.standard_normal((3, 2)))
    parameter.numpy()[0, 0] = 5
    parameter.freeze()
    with pytest.raises(ValueError, match="read-only"):
        parameter.numpy()[0, 0] = 6
    parameter.unfreeze()
    parameter.numpy()[0, 0] = 7
    assert parameter.numpy()[0, 0] == 7


def test_setting_requires_grad_is_freezing(rng):
    parameter = Parameter(rng.standard_normal(3))
    parameter.grad = np.ones(3)
    parameter.requires_grad = False
    assert parameter.frozen
    assert parameter.grad is None
    assert not parameter.numpy().flags.writeable
    parameter.requires_grad = True
    assert not parameter.frozen
    assert parameter.numpy().flags.writeable


def test_unfreezing_what_trains_keeps_its_gradient(rng):
    parameter = Parameter(rng.standard_normal(3))
    parameter.grad = np.ones(3)
    parameter.unfreeze()
    np.testing.assert_array_equal(parameter.grad, 1)


def test_the_handle_is_made_once_and_dropped_with_the_data(rng, backend):
    parameter = Parameter(rng.standard_normal((2, 2, 3, 4)), requires_grad=False, backend=backend)
    handle = parameter.handle()
    assert handle.shape == (12, 4)
    assert parameter.handle() is handle
    want = rng.standard_normal((2, 2, 3, 4))
    parameter.data = want
    assert parameter.handle() is not handle
    np.testing.assert_array_equal(parameter.handle().numpy(), want.reshape(12, 4))


def test_the_handle_is_new_after_training_in_between(rng):
    parameter = Parameter(rng.standard_normal((3, 2)), requires_grad=False)
    parameter.handle()
    parameter.unfreeze()
    parameter.data[:] = 4
    parameter.freeze()
    np.testing.assert_array_equal(parameter.handle().numpy(), np.full((3, 2), 4.0))


def test_a_parameter_that_trains_has_no_handle():
    with pytest.raises(StateError, match=r"this one trains; freeze\(\) it"):
        Parameter(np.ones((2, 2))).handle()


def test_matrix_is_the_handle_or_a_tensor_that_carries_the_gradient(rng):
    parameter = Parameter(rng.standard_normal((2, 1, 3, 4)))
    matrix = parameter.matrix()
    assert matrix.shape == (6, 4)
    matrix.sum().backward()
    np.testing.assert_array_equal(parameter.grad, np.ones((2, 1, 3, 4)))
    parameter.freeze()
    assert parameter.matrix() is parameter.handle()


def test_assigned_data_of_a_frozen_parameter_stays_writable_for_its_owner():
    mine = np.ones((2, 2))
    parameter = Parameter(np.zeros((2, 2)), requires_grad=False)
    parameter.data = mine
    assert not parameter.numpy().flags.writeable
    assert mine.flags.writeable


def test_a_read_only_view_can_be_unfrozen(tmp_path):
    np.save(tmp_path / "w.npy", np.arange(6.0).reshape(2, 3))
    mapped = np.load(tmp_path / "w.npy", mmap_mode="r")
    parameter = Parameter(np.zeros((2, 3)), requires_grad=False)
    parameter.data = mapped
    assert np.shares_memory(parameter.numpy(), mapped)
    parameter.unfreeze()
    parameter.numpy()[0, 0] = 9
    assert mapped[0, 0] == 0
    np.testing.assert_array_equal(parameter.numpy(), [[9, 1, 2], [3, 4, 5]])


def test_a_read_only_array_given_to_what_trains_is_copied():
    parameter = Parameter(np.zeros(3))
    parameter.data = np.frombuffer(np.ones(3).tobytes())
    parameter.data[0] = 2
    np.testing.assert_array_equal(parameter.numpy(), [2, 1, 1])


def test_assign_copies_and_checks(rng):
    parameter, values = Parameter(np.zeros((2, 3), np.float32)), np.ones((2, 3), np.float32)
    parameter.assign(values)
    values[:] = 5
    np.testing.assert_array_equal(parameter.numpy(), 1)
    with pytest.raises(ShapeError, match=r"shape \(2, 3\) cannot take values of shape \(3, 2\)"):
        parameter.assign(np.ones((3, 2), np.float32))
    with pytest.raises(DtypeError, match="float32 cannot take values of float64"):
        parameter.assign(np.ones((2, 3)))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda p: pickle.loads(pickle.dumps(p))], ids=["deepcopy", "copy", "pickle"]
)
@pytest.mark.parametrize("make", [Parameter, lambda a: Parameter(a, requires_grad=False), Buffer], ids=["trains", "frozen", "buffer"])
def test_a_copy_is_equal_and_independent(make, duplicate, rng):
    original = make(rng.standard_normal((3, 2)).astype(np.float32))
    original.grad = np.ones((3, 2)) if original.requires_grad else None
    got = duplicate(original)
    np.testing.assert_array_equal(got.numpy(), original.numpy())
    assert type(got) is type(original)
    assert (got.dtype, got.requires_grad, got.backend) == (original.dtype, original.requires_grad, original.backend)
    assert got.numpy().flags.writeable == original.requires_grad
    assert got.grad is None
    assert not np.shares_memory(got.numpy(), original.numpy())


def test_moving_keeps_values_and_freezing(rng):
    parameter = Parameter(rng.standard_normal((3, 2)), requires_grad=False)
    old, want = parameter.handle(), parameter.numpy().copy()
    parameter.move(get_backend("reference"))
    assert parameter.backend.name == "reference"
    assert parameter.frozen
    assert parameter.handle() is not old
    np.testing.assert_array_equal(parameter.numpy(), want)


def test_a_buffer_never_trains():
    buffer = Buffer(np.zeros(3))
    for attempt in (buffer.unfreeze, lambda: setattr(buffer, "requires_grad", True)):
        with pytest.raises(StateError, match="A buffer never trains"):
            attempt()
    assert buffer.frozen


def test_integers_can_be_kept_but_not_trained():
    with pytest.raises(DtypeError, match="float32 and float64"):
        Parameter(np.arange(3))
    parameter = Parameter(np.arange(3), requires_grad=False)
    with pytest.raises(DtypeError, match=r"Only float32 and float64 parameters.*int64"):
        parameter.unfreeze()
    assert parameter.frozen


def test_a_frozen_weight_gets_no_gradient(rng):
    x = Tensor(rng.standard_normal((4, 3)), requires_grad=True)
    weight = Parameter(rng.standard_normal((3, 2)), requires_grad=False)
    (x @ weight).sum().backward()
    assert weight.grad is None
    np.testing.assert_allclose(x.grad, np.ones((4, 2)) @ weight.numpy().T)
