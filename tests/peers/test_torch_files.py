"""What PyTorch itself saves is read as it is, number by number, and what is more than tensors is refused."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests read what it saves")

from loratk import load_adapter  # noqa: E402
from loratk.errors import FormatError  # noqa: E402

DTYPES = ["float16", "bfloat16", "float32", "float64"]


def read(path, **options):
    return load_adapter(path, format="loralib", options=options).states[0]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.pt"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_view(dtype, protocol, path):
    torch.manual_seed(0)
    shared = torch.randn(64).to(getattr(torch, dtype))
    tensors = {
        "whole": (torch.randn(3, 7).to(shared.dtype), torch.randn(5, 3).to(shared.dtype)),
        "turned": (torch.randn(7, 3).to(shared.dtype).T, torch.randn(3, 5).to(shared.dtype).T),
        "cut": (torch.randn(9, 20).to(shared.dtype)[2:5, 1::3], shared[10:20].view(5, 2)[:, :1].repeat(1, 3)),
        "shared": (shared[:12].view(3, 4), shared[12:24].view(4, 3)),
    }
    torch.save({f"{name}.lora_{half}": tensor for name, pair in tensors.items() for half, tensor in zip("AB", pair, strict=True)}, path,
               pickle_protocol=protocol)  # fmt: skip
    state = read(path)
    for name, pair in tensors.items():
        for half, tensor in zip("AB", pair, strict=True):
            got = state.tensors[f"{name}.lora_{half}"]
            want = tensor.float().numpy() if dtype == "bfloat16" else tensor.numpy()
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got.T, want)
        assert state.modules[name].get("dtypes", {}) == (dict.fromkeys(["lora_A", "lora_B"], dtype) if dtype == "bfloat16" else {})


def test_a_state_dict_and_parameters(path):
    """A state_dict has versions among its attributes, and torch pickles a Parameter in its own way."""

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lora_A, self.lora_B = torch.nn.Parameter(torch.randn(2, 4)), torch.nn.Parameter(torch.randn(3, 2))

    layer = torch.nn.ModuleDict({"q": Layer()})
    for saved in (layer.state_dict(), dict(layer.named_parameters()), {"model": layer.state_dict()}):
        torch.save(saved, path)
        np.testing.assert_array_equal(read(path).tensors["q.lora_A"].T, layer["q"].lora_A.detach().numpy())


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (torch.nn.Linear(2, 2), "'torch.nn.modules.linear.Linear'"),
        ({"a.lora_A": torch.zeros(2, 2, dtype=torch.complex64)}, "'torch.ComplexFloatStorage'"),
        ({"a.lora_A": torch.zeros(2, 2).to_sparse()}, "'torch._utils._rebuild_sparse_tensor'"),
        ({"a.lora_A": torch.zeros(2, 2).expand(8, 2, 2)}, "is not part of a storage"),
        ({"a.lora_A": torch.zeros(2, 2), "a.lora_B": torch.zeros(2, 2), "step": 3}, "must hold one dict of tensors"),
    ],
    ids=["a module", "complex", "sparse", "repeated", "more than tensors"],
)
def test_what_is_refused(saved, said, path):
    torch.save(saved, path)
    with pytest.raises(FormatError) as caught:
        read(path)
    assert said in str(caught.value)


def test_the_layout_before_torch_1_6_is_refused(path):
    torch.save({"a.lora_A": torch.zeros(2, 2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError, match=r"before torch 1\.6, a bare pickle, which loratk never reads"):
        read(path)
