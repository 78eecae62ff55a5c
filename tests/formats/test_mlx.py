"""Adapters of mlx-lm: its own files are read as it means them, and it would load from ours exactly the modules that were saved."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_adapters import Base, adapter, assert_close, assert_same, blocks, dense, module
from mlx_loader import tiny

from loratk.errors import ConfigError
from loratk.exchange import AdapterState, detect_format, load_adapter, save_adapter
from loratk.exchange.bake import dora_update
from loratk.exchange.factors import dense_update
from loratk.exchange.transform import cast
from loratk.io import open_safetensors, write_safetensors

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("name", ["lora", "bfloat16", "experts", "dora"])
def test_a_folder_of_mlx_lm_itself(name, tmp_path):
    """tests/data/make_mlx_adapters.py made it; the updates are those of mlx-lm's own layers."""
    folder = DATA / f"mlx-lm-{name}"
    reading = load_adapter(folder)
    [state] = reading.states
    with open_safetensors(folder / "updates.safetensors") as reader:
        names = [path for path in reader.names() if not path.endswith(".weight")]
        assert sorted(names) == sorted(state.modules)
        for path in names:
            record, held = state.modules[path], state.parameters()[path]
            assert (record["rank"], record["alpha"], record["scaling"]) == (2, 3.0, 1.5)
            assert record["alpha_source"] == "scale of adapter_config.json, times the rank"
            got = dora_update(reader.array(f"{path}.weight").T, record, held) if name == "dora" else dense_update(record, held)
            want = reader.array(path) if record["layer_type"] == "embedding" else reader.array(path).swapaxes(-1, -2)
            np.testing.assert_allclose(got, want, atol=2e-6)
    assert state.metadata == {"mlx.model": "tiny", "mlx.train": "true"}
    marked = [record for record in state.modules.values() if "dtypes" in record]
    assert len(marked) == (len(names) if name == "bfloat16" else 0)
    save_adapter(tmp_path / "again", state, format="mlx", options={"num_blocks": 3})
    assert_same(load_adapter(tmp_path / "again").states[0], AdapterState("", {}, state.tensors, _without_source(state)))
    old, new = (json.loads((where / "adapter_config.json").read_text()) for where in (folder, tmp_path / "again"))
    assert {key: value for key, value in new.items() if key != "lora_parameters"} == {
        key: value for key, value in old.items() if key != "lora_parameters"
    }
    with open_safetensors(folder / "adapters.safetensors") as one, open_safetensors(tmp_path / "again" / "adapters.safetensors") as two:
        assert {key: one.dtype(key) for key in one.names()} == {key: two.dtype(key) for key in two.names()}


def _without_source(state):
    return {path: {key: value for key, value in record.items() if key != "alpha_source"} for path, record in state.modules.items()}


UNEVEN = [*blocks(0, 1), *blocks(2, inner=["mlp.up_proj"])]
CHOICES = {
    "all blocks": (blocks(0, 1, 2, 3), {"num_blocks": 4}, -1, ["mlp.up_proj", "self_attn.q_proj"]),
    "all blocks, for all we know": (blocks(0, 1, 2), {}, -1, blocks(0, 1, 2)),
    "the last two": (blocks(2, 3), {"num_blocks": "4"}, 2, ["mlp.up_proj", "self_attn.q_proj"]),
    "the last two, nobody says of how many": (blocks(2, 3), {}, -1, blocks(2, 3)),
    "the first two": (blocks(0, 1), {"num_blocks": 4}, -1, blocks(0, 1)),
    "some here, some there": (UNEVEN, {}, -1, UNEVEN),
    "with a gap": (blocks(0, 2, 3), {"num_blocks": 4}, -1, blocks(0, 2, 3)),
    "beside the blocks": (["lm_head"], {}, -1, ["lm_head"]),
    "both": ([*blocks(0, 1, 2, 3), "lm_head", "model.embed_tokens"], {"num_blocks": 4}, -1,
             ["mlp.up_proj", "self_attn.q_proj", "lm_head", "model.embed_tokens"]),
    "experts": (blocks(0, 1, 2, 3, inner=["mlp.switch_mlp.up_proj"]), {"num_blocks": 4}, -1, ["mlp.switch_mlp.up_proj"]),
    "a layer of some blocks": (blocks(0, 2, inner=["mixer.in_proj"]), {"num_blocks": 4}, -1, blocks(0, 2, inner=["mixer.in_proj"])),
}  # fmt: skip


@pytest.mark.parametrize(("paths", "options", "layers", "keys"), CHOICES.values(), ids=CHOICES.keys())
def test_mlx_lm_makes_exactly_the_saved_modules(paths, options, layers, keys, tmp_path):
    want = adapter(paths)
    notes = save_adapter(tmp_path / "x", want, format="mlx", options=options)
    config = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    assert (config["num_layers"], sorted(config["lora_parameters"]["keys"])) == (layers, sorted(keys))
    assert any(note.startswith("keys are ") for note in notes)
    model = tiny(4).load(tmp_path / "x")
    assert sorted(model.made) == sorted(paths)
    for path in paths:
        assert_close(model.update(path), dense(want, path))
    assert_same(load_adapter(tmp_path / "x").states[0], want)


def test_the_base_tells_how_many_blocks_there_are(tmp_path):
    save_adapter(tmp_path / "x", adapter(blocks(2, 3)), format="mlx", base=Base(tiny(4)))
    assert json.loads((tmp_path / "x" / "adapter_config.json").read_text())["num_layers"] == 2
    save_adapter(tmp_path / "y", adapter(blocks(2, 3)), format="mlx", base=Base(tiny(6)))
    assert json.loads((tmp_path / "y" / "adapter_config.json").read_text())["lora_parameters"]["keys"] == sorted(blocks(2, 3))


def test_dora(tmp_path):
    want = adapter(blocks(0, 1, 2, 3), dora=True)
    save_adapter(tmp_path / "x", want, format="mlx")
    model = tiny(4).load(tmp_path / "x")
    for path in want.modules:
        assert_close(model.update(path), dense(want, path, model))
    assert_same(load_adapter(tmp_path / "x").states[0], want)


def test_several_ranks_and_scalings_become_one(tmp_path):
    rest = {path: module(path, rank=3, alpha=7.0) for path in blocks(1)} | {path: module(path, alpha=5.0) for path in blocks(2)}
    rest |= {path: module(path, scaling=2.5) for path in [*blocks(3, inner=["mlp.switch_mlp.up_proj"]), "model.embed_tokens"]}
    want = adapter(blocks(0), rest=rest)
    notes = save_adapter(tmp_path / "x", want, format="mlx")
    assert any("ranks 2, 3 filled up with zeros to 3, scale 1" in note for note in notes)
    config = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    assert (config["lora_parameters"]["rank"], config["lora_parameters"]["scale"]) == (3, 1.0)
    model = tiny(4).load(tmp_path / "x")
    for path in want.modules:
        assert_close(model.update(path), dense(want, path))


def test_one_rslora_scaling_is_the_scale(tmp_path):
    want = adapter(blocks(0), rank=3, alpha=4.0, scaling=4 / 3**0.5)
    save_adapter(tmp_path / "x", want, format="mlx")
    assert load_adapter(tmp_path / "x").states[0].modules[blocks(0)[0]]["scaling"] == 4 / 3**0.5
    assert all((load_adapter(tmp_path / "x").states[0].tensors[key] == array).all() for key, array in want.tensors.items())


def test_the_files_as_mlx_lm_lays_them_out(tmp_path):
    state = adapter(["lm_head"])
    state = AdapterState("default", {"dropout": 0.25}, state.tensors, state.modules, metadata={"mlx.iters": "600", "author": "me"})
    save_adapter(tmp_path / "x", state, format="mlx", options={"model": "a/b"})
    assert (
        (tmp_path / "x" / "adapter_config.json").read_text()
        == """{
    "fine_tune_type": "lora",
    "iters": 600,
    "lora_parameters": {
        "dropout": 0.25,
        "keys": [
            "lm_head"
        ],
        "rank": 2,
        "scale": 1.5
    },
    "model": "a/b",
    "num_layers": -1
}"""
    )
    with open_safetensors(tmp_path / "x" / "adapters.safetensors") as reader:
        assert {name: reader.shape(name) for name in reader.names()} == {"lm_head.lora_a": (8, 2), "lm_head.lora_b": (2, 10)}
        assert reader.metadata == {"format": "mlx", "author": "me"}
    assert load_adapter(tmp_path / "x").states[0].metadata == {"mlx.iters": "600", "mlx.model": "a/b", "author": "me"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_are_kept(dtype, tmp_path):
    want = cast([adapter(blocks(0, 1))], dtype)[0]
    save_adapter(tmp_path / "x", want, format="mlx")
    assert_same(load_adapter(tmp_path / "x").states[0], want)


def test_float64_is_rounded(tmp_path):
    notes = save_adapter(tmp_path / "x", adapter(["lm_head"], dtype=np.float64), format="mlx")
    assert any("2 tensors were rounded from float64 to float32" in note for note in notes)
    big = adapter(["lm_head"], dtype=np.float64)
    big.tensors["lm_head.lora_A"][0, 0] = 1e300
    with pytest.raises(ConfigError, match=r"'lm_head.lora_a' hold numbers that float32 does not"):
        save_adapter(tmp_path / "x", big, format="mlx")


def test_checkpoints(tmp_path):
    """By number, or by the path of the file; the last state otherwise."""
    save_adapter(tmp_path / "x", adapter(blocks(0)), format="mlx")
    old = adapter(blocks(0), seed=1)
    arrays = {key.replace("lora_A", "lora_a").replace("lora_B", "lora_b"): array for key, array in old.tensors.items()}
    write_safetensors(tmp_path / "x" / "0000100_adapters.safetensors", arrays, {})
    assert_same(load_adapter(tmp_path / "x").states[0], adapter(blocks(0)))
    for number in (100, "100", "0000100"):
        reading = load_adapter(tmp_path / "x", options={"checkpoint": number})
        assert_same(reading.states[0], old)
    assert "the tensors are those of '0000100_adapters.safetensors'" in reading.notes
    assert_same(load_adapter(tmp_path / "x" / "0000100_adapters.safetensors").states[0], old)
    with pytest.raises(ConfigError, match=r"no checkpoint '0000200_adapters.safetensors'; it has 0000100_adapters.safetensors"):
        load_adapter(tmp_path / "x", options={"checkpoint": 200})
    for bad in ("../x", -1, "1e3", "9" * 12):
        with pytest.raises(ConfigError, match="checkpoint is the number of one"):
            load_adapter(tmp_path / "x", options={"checkpoint": bad})


def test_tensors_without_their_config(tmp_path):
    save_adapter(tmp_path / "x", adapter(blocks(0), dora=True), format="mlx")
    (tmp_path / "x" / "adapter_config.json").unlink()
    assert detect_format(tmp_path / "x").evidence.startswith("adapters.safetensors: its tensors are named as mlx-lm names them")
    with pytest.raises(ConfigError, match="give it as the option scale"):
        load_adapter(tmp_path / "x")
    assert_same(load_adapter(tmp_path / "x", options={"scale": "1.5"}).states[0], adapter(blocks(0), dora=True))
    with pytest.raises(ConfigError, match="scale must be a finite number, found 'nan'"):
        load_adapter(tmp_path / "x", options={"scale": "nan"})


def test_whole_modules(tmp_path):
    rng = np.random.default_rng(0)
    record = {"method": "full", "orientation": "torch"}
    tensors = {"model.layers.0.self_attn.q_proj.weight": rng.standard_normal((12, 8)).astype(np.float32),
               "model.layers.0.self_attn.q_proj.bias": np.ones(12, np.float32), "model.norm.weight": np.ones(8, np.float32)}  # fmt: skip
    want = AdapterState("default", {}, tensors, {"model.layers.0.self_attn.q_proj": record, "model.norm": record})
    save_adapter(tmp_path / "x", want, format="mlx")
    assert json.loads((tmp_path / "x" / "adapter_config.json").read_text()) == {"fine_tune_type": "full", "num_layers": -1}
    with open_safetensors(tmp_path / "x" / "adapters.safetensors") as reader:
        assert sorted(reader.names()) == sorted(tensors)
    reading = load_adapter(tmp_path / "x")
    assert_same(reading.states[0], want)
    assert any("take the place of the base's own" in note for note in reading.notes)
    bfloat16 = cast([want], "bfloat16")[0]
    save_adapter(tmp_path / "x", bfloat16, format="mlx")
    assert_same(load_adapter(tmp_path / "x").states[0], bfloat16)


def with_module(path, record, **held):
    state = adapter(["lm_head"])
    tensors = state.tensors | {f"{path}.{key}": array for key, array in held.items()}
    return AdapterState("default", {}, tensors, state.modules | {path: record})


ROW, COLUMN = np.ones(8, np.float32), np.ones((8, 8), np.float32)
EMBED = module("model.embed_tokens", dora=True)
REFUSED = {
    "DoRA on an embedding": (adapter([], rest={"model.embed_tokens": EMBED}), "a magnitude for each of its rows"),
    "DoRA on experts": (adapter(blocks(0, inner=["mlp.switch_mlp.up_proj"]), dora=True), "a stack of experts under DoRA"),
    "DoRA in some modules": (adapter(["lm_head"], rest={blocks(0)[0]: module(blocks(0)[0], dora=True)}), "all or none may"),
    "whole modules beside adapters": (with_module("norm", {"method": "full", "orientation": "torch"}, weight=ROW), "mlx-lm has either"),
    "whole modules in another order": (AdapterState("default", {}, {"a.weight": COLUMN}, {"a": {"method": "full"}}), "is not torch's"),
    "whole convolutions": (AdapterState("default", {}, {"a.weight": COLUMN[None]}, {"a": {"method": "full", "orientation": "torch"}}),
                           "of more than 2 axes"),
    "a change of a whole module": (with_module("norm", {"method": "diff", "orientation": "torch"}, weight=ROW), "found diff with 'weight'"),
    "a bias": (with_module("norm", {"method": "bias"}, bias=ROW), "found bias with 'bias'"),
    "a part of a fused layer": (adapter(["lm_head"], columns=[0, 10]), "a part of a fused projection"),
    "a convolution": (adapter(["lm_head"], layer_type="conv2d", kernel=[2, 2]), "convolutions"),
    "a name without a part": (adapter([], rest={"a..b": module("lm_head")}), "an empty part in its name"),
    "another method": (adapter(["lm_head"], method="loha"), "other methods"),
}  # fmt: skip


@pytest.mark.parametrize(("state", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_written(state, said, tmp_path):
    save_adapter(tmp_path / "x", adapter(["lm_head"]), format="mlx")
    before = {entry.name: entry.read_bytes() for entry in (tmp_path / "x").iterdir()}
    with pytest.raises(ConfigError, match=re.escape(said)):
        save_adapter(tmp_path / "x", state, format="mlx")
    assert {entry.name: entry.read_bytes() for entry in (tmp_path / "x").iterdir()} == before


@pytest.mark.parametrize("count", [0, 3, "many", True, 2.5])
def test_a_number_of_blocks_that_cannot_be(count, tmp_path):
    with pytest.raises(ConfigError, match="num_blocks must be how many blocks the base has, at least 4"):
        save_adapter(tmp_path / "x", adapter(blocks(3)), format="mlx", options={"num_blocks": count})


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(sizes, min_size=1, max_size=4),
    rank=st.integers(1, 9),
    alpha=st.floats(-1e6, 1e6).filter(bool),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    experts=st.integers(0, 3),
    numbers=st.lists(st.integers(0, 30), min_size=4, max_size=4, unique=True),
)
def test_any_shapes_and_dtypes(shapes, rank, alpha, dtype, experts, numbers, tmp_path):
    rng = np.random.default_rng(0)
    tensors, modules = {}, {}
    for (d, k), number in zip(shapes, numbers, strict=False):
        stack = [experts] if experts else []
        path = f"model.layers.{number}.odd name/{number % 3}.q"
        record = {"method": "lora", "layer_type": "linear", "shape": [d, k], "rank": rank, "alpha": rank * (alpha / rank)}
        modules[path] = record | {"scaling": alpha / rank} | ({"experts": experts} if experts else {})
        tensors[f"{path}.lora_A"] = rng.standard_normal((*stack, d, rank)).astype(np.float32)
        tensors[f"{path}.lora_B"] = rng.standard_normal((*stack, rank, k)).astype(np.float32)
    want = cast([AdapterState("default", {}, tensors, modules)], dtype)[0]
    save_adapter(tmp_path / "x", want, format="mlx")
    got = load_adapter(tmp_path / "x").states[0]
    for path, record in want.modules.items():
        assert got.modules[path]["alpha"] == pytest.approx(record["alpha"], rel=1e-15)
        record["alpha"] = got.modules[path]["alpha"]
    assert_same(got, want)
