from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from loratk.cli import main
from loratk.io import Hdf5Store
from loratk.lora import LoraConfig, LoraModel
from loratk.nn import MLP


@pytest.fixture(scope="session")
def run():
    """Run a command line in this process: `run("inspect", path).stdout`."""
    return lambda *args: CliRunner().invoke(main, [str(arg) for arg in args], prog_name="loratk")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A model on the reference backend, its base file, and a file of two adapters, one of which trains biases."""
    folder = tmp_path_factory.mktemp("files")
    base = MLP([6, 5, 4], rng=0).to("reference")
    Hdf5Store().write(folder / "base.h5", base.state_dict() | {"steps": np.arange(3)}, {"note": "kept"})
    bare = folder / "bare.h5"
    Hdf5Store().write(bare, base.state_dict(), {"note": "kept"})
    model = LoraModel(base)
    model.add_adapter("one", LoraConfig(rank=2, alpha=3, bias="lora_only", seed=1))
    model.add_adapter("two", LoraConfig(rank=1, alpha=2, method="dora", targets=("2",), seed=2))
    rng = np.random.default_rng(3)
    for name in ("one", "two"):
        state = {key: (array + rng.standard_normal(array.shape)).astype(array.dtype) for key, array in model.state(name).items()}
        model.load_state(state, name)
    model.save(folder / "adapters.h5", metadata={"task": "test"})
    return SimpleNamespace(folder=folder, model=model, base=bare, padded=folder / "base.h5", adapters=folder / "adapters.h5")


@pytest.fixture(scope="session")
def demo_run(run, tmp_path_factory):
    """One whole run of the demonstration."""
    out = tmp_path_factory.mktemp("demo") / "deep" / "out"
    return SimpleNamespace(result=run("demo", "--out", out), out=out)
