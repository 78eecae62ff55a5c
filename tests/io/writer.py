"""What the processes of test_writes.py do: write adapters that can be told apart, whole or not."""

import itertools
import os
import resource
import signal

import h5py  # noqa: F401  (else each process imports it anew, when it first writes)
import numpy as np

from loratk.errors import LoratkError, StoreError
from loratk.exchange import AdapterState, formats_of, load_adapter, save_adapter
from loratk.plugins import default_registry
from tests.asked import Q1, TO_WRITE, Q

PATHS = [Q, Q1]
REGISTRY = default_registry()
FORMATS = formats_of(REGISTRY)


def adapter(value: int) -> AdapterState:
    """Every number in it is `value`, and its rank depends on it too."""
    rank = 1 + value % 3
    record = {"method": "lora", "layer_type": "linear", "shape": [256, 256], "rank": rank, "alpha": float(rank), "scaling": 1.0}
    tensors = {
        f"{path}.lora_{key}": np.full(shape, value, np.float32) for path in PATHS for key, shape in (("A", (256, rank)), ("B", (rank, 256)))
    }
    return AdapterState("default", {}, tensors, {path: dict(record) for path in PATHS})


def write(path, name: str, value: int) -> None:
    save_adapter(path, adapter(value), format=name, options=TO_WRITE.get(name), registry=REGISTRY)


def value_of(path, name: str) -> int:
    """The value that a whole file was written with. Raises whatever is wrong."""
    (state,) = load_adapter(path, format=name, registry=REGISTRY).states
    values = {float(number) for tensor in state.tensors.values() for number in np.unique(tensor)}
    assert len(values) == 1, f"a mixture of {sorted(values)}"
    (value,) = values
    ranks = {record["rank"] for record in state.modules.values()}
    assert ranks == {1 + value % 3}, f"the ranks {ranks} of another adapter than the values {value}"
    return int(value)


def write_for_ever(path, name: str, pipe) -> None:
    write(path, name, 1)
    pipe.send("ready")
    for value in itertools.count(2):
        write(path, name, value % 1000)


def write_without_room(path, name: str, limit: int, pipe) -> None:
    """What a write raises where files cannot grow beyond a limit, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write(path, name, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    pipe.send(_raised(path, name))


def write_without_permission(path, name: str, pipe) -> None:
    """What a write raises in a folder where nothing may be made. For root nothing is forbidden, so it is somebody else for it."""
    write(path.with_name("elsewhere" + path.suffix), name, 1)  # imports
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    pipe.send(_raised(path, name))


def _raised(path, name: str) -> str:
    try:
        write(path, name, 2)
    except StoreError as error:
        return f"StoreError: {error}"
    except LoratkError as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:
        return repr(error)
    return "nothing"
