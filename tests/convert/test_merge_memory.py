"""A merge holds some megabytes, whatever the size of the checkpoint; of an array that must be made as a whole a few times its size."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from merge_files import adapter

from loratk.exchange import AdapterState, save_adapter
from loratk.io import LazyArrays, write_safetensors

if not Path("/proc/self/status").exists():
    pytest.skip("no /proc to look at", allow_module_level=True)

SCRIPT = Path(__file__).with_name("merge_process.py")


def base(path, count, shape):
    """Weights in bfloat16."""
    one = np.ones(shape, np.float32)
    arrays = LazyArrays({f"{n}.weight": (shape, np.dtype(np.float32)) for n in range(count)}, lambda name: one)
    write_safetensors(path, arrays, {}, list(arrays))


def magnitudes(state):
    """DoRA in place of LoRA."""
    more = {f"{module}.magnitude": np.ones(record["shape"][1], np.float32) for module, record in state.modules.items()}
    return AdapterState(state.name, {}, {**state.tensors, **more}, {name: {**r, "method": "dora"} for name, r in state.modules.items()})


def peak(tmp_path, count, shape, end, make=lambda state: state):
    """Bytes that a merge takes beyond what a small one of the same kind took."""
    base(tmp_path / "small.safetensors", 1, (1024, 512))
    base(tmp_path / "large.safetensors", count, shape)
    save_adapter(tmp_path / "small-adapter.safetensors", make(adapter(modules={"0": (512, 1024)})), format="safetensors")
    save_adapter(tmp_path / "a.h5", make(adapter(modules={str(n): shape[::-1] for n in range(count)})))
    command = [sys.executable, str(SCRIPT), "measured", *(str(tmp_path / name) for name in ("large.safetensors", "a.h5", f"out.{end}"))]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=SCRIPT.parents[2]).stdout)


def test_products_take_the_same_for_any_size(tmp_path):
    """240 MB in arrays of 30 MB."""
    assert peak(tmp_path, 8, (3750, 4000), "safetensors") < 24 << 20


@pytest.mark.parametrize("end", ["h5", "npz"])
def test_other_stores_hold_one_array(tmp_path, end):
    """160 MB of bfloat16 in arrays that are 40 MB of float32 there, and summed in float64."""
    assert peak(tmp_path, 8, (2500, 4000), end) < 7 * (40 << 20)


def test_what_is_made_as_a_whole_takes_a_few_times_its_size(tmp_path):
    """120 MB of bfloat16 in arrays of 10 MB, in float64 on the way."""
    assert peak(tmp_path, 12, (1250, 4000), "safetensors", magnitudes) < 32 * (10 << 20)
