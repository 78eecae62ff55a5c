"""kohya and LyCORIS files: where alpha comes from and how it goes out, metadata, and the hashes."""

import hashlib
import json

import numpy as np
import pytest
from kohya_files import M, close, golden, lokr, lora, normal, plain, read, torch_order

from loratk.errors import ConfigError
from loratk.exchange import AdapterState, load_adapter, save_adapter
from loratk.io import open_safetensors

# Alpha, and what else the header says.


@pytest.mark.parametrize(
    ("alpha", "metadata", "want", "source"),
    [
        (np.array(3.0), {"ss_network_alpha": "8"}, 3.0, "the file's alpha"),
        (np.array([3.0], np.float16), {}, 3.0, "the file's alpha"),
        (np.array(3), {}, 3.0, "the file's alpha"),
        (np.array(0.0), {"ss_network_alpha": "8"}, 2.0, "the rank, which an alpha of 0 means"),
        (None, {"ss_network_alpha": "8", "ss_network_dim": "2"}, 8.0, "the header's ss_network_alpha, for there is no alpha"),
        (None, {"ss_network_alpha": "8", "ss_network_dim": "16"}, 2.0, "the rank, for there is no alpha"),
        (None, {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}, 2.0, "the rank, for there is no alpha"),
        (None, {"ss_network_alpha": "nan"}, 2.0, "the rank, for there is no alpha"),
        (None, {"ss_network_dim": "9" * 5000}, 2.0, "the rank, for there is no alpha"),
        (None, {}, 2.0, "the rank, for there is no alpha"),
    ],
)
def test_where_alpha_comes_from(tmp_path, alpha, metadata, want, source):
    state, _ = read(tmp_path, lora() | ({} if alpha is None else {"alpha": alpha}), metadata=metadata)
    record = state.modules[M]
    assert (record["alpha"], record["scaling"], record["alpha_source"]) == (want, want / 2, source)
    assert state.metadata == metadata


def test_a_scalar_multiplies_alpha(tmp_path):
    state, _ = read(tmp_path, lora() | {"alpha": np.array(4.0), "scalar": np.array(0.5)})
    assert (state.modules[M]["alpha"], state.modules[M]["scaling"]) == (2.0, 1.0)
    assert state.modules[M]["alpha_source"] == "the file's alpha, times the scalar 0.5"


def test_rslora_is_in_alpha(tmp_path):
    """LyCORIS writes alpha sqrt(r); what loratk has as rslora goes out the same way."""
    want = golden(tmp_path, "lora-rslora")
    state = load_adapter(tmp_path / "x.safetensors").states[0]
    close(torch_order(state), want["diff"].astype(np.float64), 1e-6)
    record = {"method": "lora", "layer_type": "linear", "shape": [4, 5], "rank": 4, "alpha": 8.0, "scaling": 4.0}
    tensors = {f"{M}.lora_A": normal(4, 4), f"{M}.lora_B": normal(4, 5)}
    save_adapter(tmp_path / "y.safetensors", AdapterState("a", {}, tensors, {M: record}), format="kohya")
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        assert reader.array(f"{M}.alpha") == 16.0


@pytest.mark.parametrize(
    ("alpha", "dtype", "want"),
    [(4.0, "F16", "F16"), (0.1, "F16", "F32"), (1e6, "F16", "F32"), (4.0, "BF16", "BF16"), (0.1, "BF16", "F32"), (0.1, "F32", "F32"),
     (0.1, "F64", "F64"), (1e-9, "F16", "F32")],
)  # fmt: skip
def test_alpha_goes_out_in_the_dtype_of_the_factors_if_that_has_it(tmp_path, alpha, dtype, want):
    kind = {"F16": np.float16, "F64": np.float64}.get(dtype, np.float32)
    record = {"method": "lora", "layer_type": "linear", "shape": [4, 5], "rank": 1, "alpha": alpha, "scaling": alpha}
    record |= {"dtypes": {"lora_A": "bfloat16", "lora_B": "bfloat16"}} if dtype == "BF16" else {}
    tensors = {f"{M}.lora_A": np.ones((4, 1), kind), f"{M}.lora_B": np.ones((1, 5), kind)}
    notes = save_adapter(tmp_path / "y.safetensors", AdapterState("a", {}, tensors, {M: record}), format="kohya")
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        assert (reader.dtype(f"{M}.lora_down.weight"), reader.dtype(f"{M}.alpha"), reader.shape(f"{M}.alpha")) == (dtype, want, ())
        got = float(reader.array(f"{M}.alpha"))
    assert got == pytest.approx(alpha, rel=1e-7)
    assert any("is rounded" in note for note in notes) == (got != alpha)


def test_an_alpha_of_zero_cannot_go_out(tmp_path):
    """A reader would take it for the rank."""
    record = {"method": "lora", "layer_type": "linear", "shape": [4, 5], "rank": 1, "alpha": 0.0, "scaling": 0.0}
    state = AdapterState("a", {}, {f"{M}.lora_A": np.ones((4, 1)), f"{M}.lora_B": np.ones((1, 5))}, {M: record})
    with pytest.raises(ConfigError, match="an alpha of 0 for the rank"):
        save_adapter(tmp_path / "y.safetensors", state, format="kohya")
    assert not (tmp_path / "y.safetensors").exists()


# Metadata and hashes.


def hashes_by_hand(path):
    """The two hashes as sd-webui-additional-networks defines them, of a file without the metadata that is not ss_*."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = {key: text for key, text in header["__metadata__"].items() if key.startswith("ss_")}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    kept = len(text).to_bytes(8, "little") + text + data[8 + length :]
    return hashlib.sha256(data[8 + length :]).hexdigest(), hashlib.sha256(kept[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]


@pytest.mark.parametrize(("size", "dtypes"), [(4, {}), (3000, {}), (300_000, {}), (300_000, {"lora_A": "bfloat16"})], ids=str)
def test_metadata_goes_round_and_the_hashes_are_those_of_the_file(tmp_path, size, dtypes):
    """The smaller files end before the place of the legacy hash."""
    record = {"method": "lora", "layer_type": "linear", "shape": [size, 5], "rank": 2, "alpha": 4.0, "scaling": 2.0, "dtypes": dtypes}
    tensors = {f"{M}.lora_A": normal(size, 2, dtype=np.float32), f"{M}.lora_B": normal(2, 5, dtype=np.float32)}
    own = {"ss_output_name": "mine", "modelspec.title": "größe", "sshs_model_hash": "old", "ss_network_dim": "77", "format": "pt"}
    path = tmp_path / "y.safetensors"
    save_adapter(path, AdapterState("a", {}, tensors, {M: record}, metadata=own), format="kohya")
    state = load_adapter(path).states[0]
    whole, part = hashes_by_hand(path)
    want = {"ss_output_name": "mine", "modelspec.title": "größe", "ss_network_module": "networks.lora", "ss_network_dim": "2",
            "ss_network_alpha": "4", "ss_network_args": "{}", "sshs_model_hash": whole, "sshs_legacy_hash": part}  # fmt: skip
    assert state.metadata == want
    assert (part == "e3b0c442") == (size < 100_000)


def test_the_header_of_mixed_ranks_and_other_methods(tmp_path):
    state, path = plain("unet.a", "unet.b"), tmp_path / "y.safetensors"
    state.modules["unet.a"] |= {"alpha": 4.0, "scaling": 2.0}
    save_adapter(path, state, format="kohya")
    metadata = load_adapter(path).states[0].metadata
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "Dynamic")
    state, _ = read(tmp_path, lokr("full", "low")[0], metadata={"ss_network_module": "networks.lora"})
    save_adapter(path, state, format="kohya")
    metadata = load_adapter(path).states[0].metadata
    assert (metadata["ss_network_module"], metadata["ss_network_args"]) == ("lycoris.kohya", '{"algo": "lokr"}')
