"""kohya and LyCORIS files: every method's update as its formula gives it, names, alpha, metadata, and what is refused."""

import hashlib
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratk.convert import export_adapters
from loratk.errors import ConfigError, FormatError, LoratkError
from loratk.exchange import AdapterState, Checkpoint, detect_format, load_adapter, save_adapter
from loratk.exchange.bake import dora_update
from loratk.exchange.factors import dense_update
from loratk.io import SafetensorsStore, open_safetensors, write_safetensors
from loratk.io.bfloat16 import to_bits, to_float32
from loratk.plugins import default_registry

GOLDEN = Path(__file__).parent.parent / "data/kohya"
M = "lora_unet_m"


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed + 7 * len(shape) + sum(shape)).standard_normal(shape).astype(dtype)


def write(path, tensors, metadata=None, bfloat16=(), name=M):
    arrays = {f"{name}.{key}": np.asarray(array) for key, array in tensors.items()}
    write_safetensors(path, arrays, metadata or {}, {f"{name}.{key}" for key in bfloat16})
    return path


def read(tmp_path, tensors, *, metadata=None, bfloat16=(), **options):
    """The one state that the tensors of a module are read as, and the notes."""
    base = options.pop("base", None)
    path = write(tmp_path / "x.safetensors", tensors, metadata, bfloat16)
    reading = load_adapter(path, options=options, base=base)
    return reading.states[0], reading.notes


def torch_order(state, module=M):
    """The update of a LoRA module as torch lays its weight out, (k, channels, *window) or (k, d), by the record alone."""
    record, held = state.modules[module], state.parameters()[module]
    matrix = dense_update(record, held)
    window = record.get("kernel", [])
    return np.moveaxis(matrix.reshape(*window, -1, matrix.shape[1]), (-1, -2), (0, 1))


def close(got, want, tolerance=1e-12):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(np.abs(want).max(), 1)


def lora(k=5, c=4, r=2, window=(), dtype=np.float64):
    ones = (1,) * len(window)
    return {"lora_down.weight": normal(r, c, *window, dtype=dtype), "lora_up.weight": normal(k, r, *ones, seed=1, dtype=dtype)}


# The methods, each update computed here from its formula.


@pytest.mark.parametrize("window", [(), (1, 1), (3, 3), (3,), (3, 2, 1)], ids=str)
def test_lora_and_locon(tmp_path, window):
    tensors = lora(window=window) | {"alpha": np.array(3.0)}
    state, _ = read(tmp_path, tensors)
    up = tensors["lora_up.weight"].reshape(5, 2)
    close(torch_order(state), 3 / 2 * np.einsum("or,ri...->oi...", up, tensors["lora_down.weight"]))
    record = state.modules[M]
    want = {"method": "lora", "layer_type": f"conv{len(window)}d" if window else "linear", "rank": 2, "alpha": 3.0, "scaling": 1.5}
    assert {key: record[key] for key in want} == want
    assert record["shape"] == [4 * int(np.prod(window)), 5]
    assert record.get("kernel") == (list(window) or None)
    assert record["alpha_source"] == "the file's alpha"


@pytest.mark.parametrize("window", [(3, 3), (2,)], ids=str)
def test_locon_with_a_core_is_locon_exactly(tmp_path, window):
    ones = (1,) * len(window)
    tensors = {
        "lora_down.weight": normal(2, 4, *ones),
        "lora_up.weight": normal(5, 2, *ones),
        "lora_mid.weight": normal(2, 2, *window),
        "alpha": np.array(1.0),
    }
    up, down = (tensors[f"lora_{half}.weight"].reshape(tensors[f"lora_{half}.weight"].shape[:2]) for half in ("up", "down"))
    want = 1 / 2 * np.einsum("mn...,im,nj->ij...", tensors["lora_mid.weight"], up, down)
    state, _ = read(tmp_path, tensors)
    assert state.modules[M]["method"] == "locon"
    np.testing.assert_array_equal(state.tensors[f"{M}.lora_mid"], tensors["lora_mid.weight"])
    state, notes = read(tmp_path, tensors, factor="yes")
    assert state.modules[M]["rank"] == 2
    close(torch_order(state), want)
    assert any("locon of rank 2 made LoRA of rank 2, exact" in note for note in notes)


def test_loha(tmp_path):
    a, b, c, d = normal(5, 2), normal(2, 4), normal(5, 2, seed=1), normal(2, 4, seed=2)
    tensors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": np.array(3.0)}
    state, notes = read(tmp_path, tensors)
    record = state.modules[M]
    assert (record["method"], record["orientation"], record["shape"], record["rank"], record["scaling"]) == (
        "loha",
        "torch",
        [4, 5],
        2,
        1.5,
    )
    np.testing.assert_array_equal(state.tensors[f"{M}.hada_w2_b"], d)
    assert any("do not tell whether they are of convolutions" in note for note in notes)
    state, _ = read(tmp_path, tensors, factor="yes")
    assert (state.modules[M]["method"], state.modules[M]["rank"], state.modules[M]["alpha"]) == ("lora", 4, 6.0)
    close(torch_order(state), 1.5 * (a @ b) * (c @ d))


def test_loha_tucker(tmp_path):
    t, w = [normal(2, 2, 3, 3, seed=n) for n in (1, 2)], [(normal(2, 5, seed=n), normal(2, 4, seed=n)) for n in (3, 4)]
    tensors = {f"hada_t{n + 1}": t[n] for n in (0, 1)} | {"alpha": np.array(1.0)}
    tensors |= {f"hada_w{n + 1}_{half}": w[n][half == "b"] for n in (0, 1) for half in "ab"}
    sides = [np.einsum("ij...,ip,jq->pq...", t[n], *w[n]) for n in (0, 1)]
    state, _ = read(tmp_path, tensors)
    assert state.modules[M]["kernel"] == [3, 3]
    state, _ = read(tmp_path, tensors, factor="yes")
    close(torch_order(state), sides[0] * sides[1] / 2)


def lokr(first, second, window=()):
    """The tensors of a LoKr module, and its w1 and w2."""
    r, size = 2, int(np.prod(window))
    w1 = {"full": {"lokr_w1": normal(3, 2)}, "low": {"lokr_w1_a": normal(3, r), "lokr_w1_b": normal(r, 2)}}[first]
    w2 = {
        "full": {"lokr_w2": normal(4, 5, *window)},
        "low": {"lokr_w2_a": normal(4, r), "lokr_w2_b": normal(r, 5 * size)},
        "tucker": {"lokr_w2_a": normal(r, 4), "lokr_w2_b": normal(r, 5), "lokr_t2": normal(r, r, *window)},
    }[second]
    one = w1.get("lokr_w1", w1.get("lokr_w1_a", 0) @ w1["lokr_w1_b"] if first == "low" else 0)
    two = (
        w2["lokr_w2"]
        if second == "full"
        else (w2["lokr_w2_a"] @ w2["lokr_w2_b"]).reshape(4, 5, *window)
        if second == "low"
        else np.einsum("ij...,ip,jq->pq...", w2["lokr_t2"], w2["lokr_w2_a"], w2["lokr_w2_b"])
    )
    return w1 | w2 | {"alpha": np.array(3.0)}, one, two


@pytest.mark.parametrize(
    ("first", "second", "window"),
    [*product(("full", "low"), ("full", "low"), [()]), *product(("full", "low"), ("full", "tucker"), [(3, 3)])],
    ids=str,
)
def test_lokr(tmp_path, first, second, window):
    tensors, one, two = lokr(first, second, window)
    scaling = 1.0 if (first, second) == ("full", "full") else 3 / 2
    want = scaling * np.einsum("ac,bd...->abcd...", one, two).reshape(12, 10, *window)
    state, _ = read(tmp_path, tensors)
    record = state.modules[M]
    assert (record["method"], record["scaling"], record["shape"]) == ("lokr", scaling, [10 * int(np.prod(window)), 12])
    for key in tensors.keys() - {"alpha"}:
        np.testing.assert_array_equal(state.tensors[f"{M}.{key}"], tensors[key])
    state, _ = read(tmp_path, tensors, factor="yes")
    close(torch_order(state), want)


def test_a_lokr_and_a_loha_of_a_convolution_are_one_by_the_base(tmp_path):
    """Their tensors do not tell the window."""
    write_safetensors(tmp_path / "base.safetensors", {"m.weight": normal(12, 10, 3, 3)}, {})
    tensors, one, two = lokr("full", "low", (3, 3))
    state, _ = read(tmp_path, tensors, factor="yes", base=tmp_path / "base.safetensors")
    assert (state.modules["m"]["layer_type"], state.modules["m"]["kernel"]) == ("conv2d", [3, 3])
    close(torch_order(state, "m"), 1.5 * np.einsum("ac,bd...->abcd...", one, two).reshape(12, 10, 3, 3))
    a, b, c, d = normal(12, 2), normal(2, 90), normal(12, 2, seed=1), normal(2, 90, seed=2)
    tensors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    state, _ = read(tmp_path, tensors, factor="yes", base=tmp_path / "base.safetensors")
    close(torch_order(state, "m"), ((a @ b) * (c @ d)).reshape(12, 10, 3, 3))


@pytest.mark.parametrize("second", ["full", "low"])
def test_factor_with_a_rank_is_the_best_of_that_rank(tmp_path, second):
    tensors, one, two = lokr("full", second)
    dense = (1.0 if second == "full" else 1.5) * np.kron(one, two)
    state, notes = read(tmp_path, tensors, factor="3")
    u, s, v = np.linalg.svd(dense)
    close(torch_order(state), (u[:, :3] * s[:3]) @ v[:3])
    lost = np.linalg.norm(s[3:]) / np.linalg.norm(s)
    assert any(f"made LoRA of rank 3, {lost:.2%} of it lost" in note for note in notes)
    a, b, c, d = normal(6, 2), normal(2, 7), normal(6, 2, seed=1), normal(2, 7, seed=2)
    state, _ = read(tmp_path, {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}, factor="3")
    u, s, v = np.linalg.svd((a @ b) * (c @ d))
    close(torch_order(state), (u[:, :3] * s[:3]) @ v[:3])


@pytest.mark.parametrize("window", [(), (3, 3)], ids=str)
def test_dora_of_outputs(tmp_path, window):
    scale = np.abs(normal(5)) + 0.5
    tensors = lora(window=window) | {"alpha": np.array(1.0), "dora_scale": scale.reshape(5, 1, *(1 for _ in window))}
    state, _ = read(tmp_path, tensors)
    record, held = state.modules[M], state.parameters()[M]
    assert record["method"] == "dora"
    weight = normal(5, 4, *window, seed=3)
    moved = weight + np.einsum("or,ri...->oi...", tensors["lora_up.weight"].reshape(5, 2), tensors["lora_down.weight"]) / 2
    norm = np.linalg.norm(moved.reshape(5, -1), axis=1).reshape(5, *(1 for _ in moved.shape[1:]))
    want = moved * scale.reshape(norm.shape) / norm - weight
    ours = np.moveaxis(weight, (0, 1), (-1, -2)).reshape(-1, 5)
    close(dora_update(ours, record, held), np.moveaxis(want, (0, 1), (-1, -2)).reshape(-1, 5))


def test_dora_of_inputs_keeps_its_tensors(tmp_path):
    tensors = lora() | {"dora_scale": np.ones((1, 4))}
    state, notes = read(tmp_path, tensors)
    assert state.modules[M]["method"] == "dora_in"
    assert set(state.parameters()[M]) == {"lora_down", "lora_up", "dora_scale"}
    assert any("for each input, which only LyCORIS knows" in note for note in notes)
    with pytest.raises(ConfigError, match="other methods"):
        save_adapter(tmp_path / "y", state, format="diffusers")


def test_dora_of_loha_and_lokr_becomes_dora(tmp_path):
    a, b, c, d = normal(5, 2), normal(2, 4), normal(5, 2, seed=1), normal(2, 4, seed=2)
    tensors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "dora_scale": np.ones((5, 1))}
    assert read(tmp_path, tensors)[0].modules[M]["method"] == "loha"
    state, _ = read(tmp_path, tensors, factor="yes")
    assert state.modules[M]["method"] == "dora"
    np.testing.assert_array_equal(state.tensors[f"{M}.magnitude"], np.ones(5))


@pytest.mark.parametrize(
    ("tensors", "parameters"),
    [({"diff": normal(5, 4, 3, 3), "diff_b": normal(5)}, ("weight", "bias")),
     ({"w_norm": normal(5), "b_norm": normal(5)}, ("weight", "bias")),
     ({"w_norm": normal(5)}, ("weight",)), ({"diff_b": normal(5)}, ("bias",))],
    ids=["full", "norm", "norm without bias", "bias"],
)  # fmt: skip
def test_differences(tmp_path, tensors, parameters):
    state, _ = read(tmp_path, tensors)
    assert (state.modules[M]["method"], state.modules[M]["orientation"]) == ("diff", "torch")
    for parameter, array in zip(parameters, tensors.values(), strict=True):
        np.testing.assert_array_equal(state.tensors[f"{M}.{parameter}"], array)
    save_adapter(tmp_path / "y.safetensors", state, format="kohya")
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        assert {name.removeprefix(f"{M}."): reader.array(name).tolist() for name in reader.names()} == {
            key: array.tolist() for key, array in tensors.items()
        }


KEPT = {
    "ia3": ({"weight": normal(5), "on_input": np.array(0)}, "ia3"),
    "ia3, convolution": ({"weight": normal(1, 4, 1, 1), "on_input": np.array(True)}, "ia3"),
    "oft": ({"oft_blocks": normal(3, 2, 2), "alpha": np.array(0.5)}, "oft"),
    "boft": ({"oft_blocks": normal(2, 3, 2, 2), "rescale": normal(6, 1), "alpha": np.array(0.0)}, "boft"),
    "glora": ({"a1.weight": normal(4, 2), "a2.weight": normal(2, 4), "b1.weight": normal(5, 2), "b2.weight": normal(2, 4)}, "glora"),
    "glora, core": ({"a1.weight": normal(4, 2, 1, 1), "a2.weight": normal(2, 4, 1, 1), "b1.weight": normal(5, 2, 1, 1),
                     "b2.weight": normal(2, 4, 1, 1), "bm.weight": normal(2, 2, 3, 3)}, "glora"),
    "sparse": (lora() | {"bias_indices": np.array([[0, 1], [2, 3]], np.int16), "bias_values": normal(2),
                         "bias_size": np.array([5, 4])}, "locon"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "method"), KEPT.values(), ids=KEPT.keys())
def test_other_methods_keep_their_tensors_and_go_back(tmp_path, tensors, method):
    for factor in ("no", *(("yes",) if method != "glora" or "bm.weight" in tensors else ())):
        state, _ = read(tmp_path, tensors, factor=factor)
        assert (state.modules[M]["method"], state.modules[M]["orientation"]) == (method, "torch")
        save_adapter(tmp_path / "y.safetensors", state, format="kohya")
        with open_safetensors(tmp_path / "y.safetensors") as reader:
            got = {name.removeprefix(f"{M}."): reader.array(name) for name in reader.names()}
        assert got.keys() - {"alpha"} == tensors.keys() - {"alpha"}
        for key in tensors.keys() & got.keys():
            assert (got[key].dtype, got[key].tolist()) == (tensors[key].dtype, tensors[key].tolist())


def test_glora_is_lora_of_twice_the_rank_with_its_base(tmp_path):
    tensors = KEPT["glora"][0] | {"alpha": np.array(1.0)}
    weight = normal(5, 4)
    write_safetensors(tmp_path / "base.safetensors", {"unet.m.weight": weight}, {})
    state, _ = read(tmp_path, tensors, factor="yes", base=tmp_path / "base.safetensors")
    a1, a2, b1, b2 = (tensors[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    assert state.modules["unet.m"]["rank"] == 4
    close(torch_order(state, "unet.m"), (b1 @ b2 + weight @ a1 @ a2) / 2)
    with pytest.raises(ConfigError, match="depends on the base's weight"):
        read(tmp_path, tensors, factor="yes")


def golden(tmp_path, name):
    """A file of LyCORIS without what it wants, its expected update, base and merged weight."""
    with open_safetensors(GOLDEN / f"{name}.safetensors") as reader:
        arrays = {key: reader.array(key) for key in reader.names()}
    want = {key.removeprefix("want."): arrays.pop(key) for key in list(arrays) if key.startswith("want.")}
    write_safetensors(tmp_path / "x.safetensors", arrays, {})
    write_safetensors(tmp_path / "base.safetensors", {"m.weight": want["base"]}, {})
    return want


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.safetensors")))
def test_what_lycoris_computes(tmp_path, name):
    """LyCORIS's own update and merged weight, of its own files."""
    want = golden(tmp_path, name)
    base = tmp_path / "base.safetensors"
    state = load_adapter(tmp_path / "x.safetensors", base=base, options={"factor": "yes"}).states[0]
    record, held = state.modules["m"], state.parameters()["m"]
    if name in ("ia3-linear", "lora-dora-in"):
        assert record["method"] == {"ia3-linear": "ia3", "lora-dora-in": "dora_in"}[name]
        return
    close(torch_order(state, "m"), want["diff"].astype(np.float64), 1e-6)
    if "merged" in want:
        with Checkpoint(base, {"safetensors": SafetensorsStore()}) as opened:
            update = dora_update(opened.weight("m"), record, held)
        merged = np.moveaxis(want["merged"] - want["base"], (0, 1), (-1, -2)).reshape(update.shape)
        close(update, merged.astype(np.float64), 1e-5)
    else:
        assert record["method"] == "lora"


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


# Names.


def test_names_without_a_base_stay_as_they_are(tmp_path):
    state, notes = read(tmp_path, lora())
    assert list(state.modules) == [M]
    assert any("'_' for '.'" in note for note in notes)


def bases(tmp_path, *names):
    write_safetensors(tmp_path / "base.safetensors", {f"{name}.weight": normal(5, 4) for name in names}, {})
    return tmp_path / "base.safetensors"


@pytest.mark.parametrize(
    ("name", "modules", "want"),
    [
        ("lora_unet_a_b_to_q", ["a.b.to_q", "a.b.to_k"], "a.b.to_q"),
        ("lora_unet_a_b_to_q", ["unet.a.b.to_q", "text_encoder.a.b.to_q"], "unet.a.b.to_q"),
        ("lora_unet_a_b_to_q", ["transformer.a.b.to_q"], "transformer.a.b.to_q"),
        ("lora_te_a_fc1", ["text_encoder.a.fc1", "unet.a.fc1"], "text_encoder.a.fc1"),
        ("lora_te1_a_fc1", ["text_encoder.a.fc1", "text_encoder_2.a.fc1"], "text_encoder.a.fc1"),
        ("lora_te2_a_fc1", ["text_encoder.a.fc1", "text_encoder_2.a.fc1"], "text_encoder_2.a.fc1"),
        ("lycoris_model_layers_0_q_proj", ["model.layers.0.q_proj"], "model.layers.0.q_proj"),
    ],
)
def test_names_come_back_from_the_base_and_go_out_again(tmp_path, name, modules, want):
    path = write(tmp_path / "x.safetensors", lora(), name=name)
    reading = load_adapter(path, base=bases(tmp_path, *modules))
    state = reading.states[0]
    assert list(state.modules) == [want]
    assert any("1 of 1 names" in note for note in reading.notes)
    save_adapter(tmp_path / "y.h5", state)
    save_adapter(tmp_path / "y.safetensors", load_adapter(tmp_path / "y.h5").states, format="kohya")
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        assert {key.partition(".")[0] for key in reader.names()} == {name}


def test_a_name_that_may_be_two_modules_is_not_guessed(tmp_path):
    arrays = {f"lora_unet_{name}.{key}": array for name in ("q_proj", "k") for key, array in lora().items()}
    write_safetensors(tmp_path / "x.safetensors", arrays, {})
    reading = load_adapter(tmp_path / "x.safetensors", base=bases(tmp_path, "q.proj", "q_proj", "k"))
    assert list(reading.states[0].modules) == ["k", "lora_unet_q_proj"]
    assert any("'lora_unet_q_proj' may be 'q.proj', 'q_proj'" in note for note in reading.notes)


def test_a_base_of_another_model_is_refused(tmp_path):
    path = write(tmp_path / "x.safetensors", lora())
    with pytest.raises(FormatError, match=r"'lora_unet_m'.*such as 'other'"):
        load_adapter(path, base=bases(tmp_path, "other"))
    write_safetensors(tmp_path / "base.safetensors", {"m.weight": normal(5, 5)}, {})
    with pytest.raises(FormatError, match=r"'m' is for a weight of shape \[4, 5\], the base has \(5, 5\)"):
        load_adapter(path, base=tmp_path / "base.safetensors")


def plain(*modules, **changes):
    """A state of LoRA modules."""
    record = {"method": "lora", "layer_type": "linear", "shape": [4, 5], "rank": 2, "alpha": 2.0, "scaling": 1.0} | changes
    tensors = {f"{module}.{key}": array for module in modules for key, array in {"lora_A": normal(4, 2), "lora_B": normal(2, 5)}.items()}
    return AdapterState("a", {}, tensors, {module: dict(record) for module in modules})


@pytest.mark.parametrize(
    ("modules", "options", "want"),
    [
        (["unet.a.b", "text_encoder.c"], {}, ["lora_unet_a_b", "lora_te_c"]),
        (["text_encoder.c", "text_encoder_2.c"], {}, ["lora_te1_c", "lora_te2_c"]),
        (["transformer.a.b"], {}, ["lora_unet_a_b"]),
        (["model.layers.0.q_proj"], {}, ["lycoris_model_layers_0_q_proj"]),
        (["model.q"], {"prefix": "lora_te"}, ["lora_te_model_q"]),
        (["lora_unet_a_b"], {}, ["lora_unet_a_b"]),
    ],
)
def test_names_for_a_file(tmp_path, modules, options, want):
    notes = save_adapter(tmp_path / "y.safetensors", plain(*modules), format="kohya", options=options)
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        assert {name.partition(".")[0] for name in reader.names()} == set(want)
    assert any("got the prefix 'lycoris'" in note for note in notes) == want[0].startswith("lycoris")


def test_names_that_would_be_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'a\.b_c', 'a_b\.c' are all named 'lycoris_a_b_c'"):
        save_adapter(tmp_path / "y.safetensors", plain("a.b_c", "a_b.c"), format="kohya")
    with pytest.raises(ConfigError, match="a prefix must be letters"):
        save_adapter(tmp_path / "y.safetensors", plain("a"), format="kohya", options={"prefix": "a.b"})


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


@pytest.mark.parametrize("size", [4, 3000, 300_000])
def test_metadata_goes_round_and_the_hashes_are_those_of_the_file(tmp_path, size):
    """The smaller files end before the place of the legacy hash."""
    record = {"method": "lora", "layer_type": "linear", "shape": [size, 5], "rank": 2, "alpha": 4.0, "scaling": 2.0}
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


# Fused projections.


def test_fused_projections_split_and_come_together(tmp_path):
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = lora(k=6) | {"alpha": np.array(1.0)}
    path = write(tmp_path / "x.safetensors", tensors, name=name)
    assert any("split=yes" in note for note in load_adapter(path).notes)
    state = load_adapter(path, options={"split": "yes"}).states[0]
    assert list(state.modules) == [f"{name}.{part}" for part in "qkv"]
    want = tensors["lora_up.weight"] @ tensors["lora_down.weight"] / 2
    for place, part in enumerate("qkv"):
        record = state.modules[f"{name}.{part}"]
        assert (record["columns"], record["shape"], record["rank"]) == ([2 * place, 2 * place + 2], [4, 2], 2)
        close(torch_order(state, f"{name}.{part}"), want[2 * place : 2 * place + 2])
    save_adapter(tmp_path / "y.safetensors", state, format="kohya")
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        for key, array in tensors.items():
            np.testing.assert_array_equal(reader.array(f"{name}.{key}"), array)


def test_a_block_diagonal_projection_splits_into_its_blocks(tmp_path):
    up = np.zeros((6, 3))
    for place in range(3):
        up[2 * place : 2 * place + 2, place] = place + 1
    path = write(tmp_path / "x.safetensors", {"lora_down.weight": normal(3, 4), "lora_up.weight": up, "alpha": np.array(6.0)}, name="m_qkv")
    state = load_adapter(path, options={"split": "yes"}).states[0]
    assert [(record["rank"], record["alpha"], record["scaling"]) for record in state.modules.values()] == [(1, 2.0, 2.0)] * 3
    save_adapter(tmp_path / "y.safetensors", state, format="kohya", options={"prefix": "lora_unet"})
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        np.testing.assert_array_equal(reader.array("lora_unet_m_qkv.lora_up.weight"), up)
        assert reader.array("lora_unet_m_qkv.alpha") == 6.0


def test_blocks_with_several_scalings_and_a_missing_one(tmp_path):
    state = plain("attn.q", "attn.v", shape=[4, 5])
    state.modules["attn.q"] |= {"columns": [0, 5], "alpha": 6.0, "scaling": 3.0}
    state.modules["attn.v"] |= {"columns": [10, 15]}
    save_adapter(tmp_path / "y.safetensors", state, format="kohya", options={"prefix": "lora_unet"})
    got = load_adapter(tmp_path / "y.safetensors").states[0]
    want = np.zeros((15, 4))
    for part, columns in (("q", slice(0, 5)), ("v", slice(10, 15))):
        want[columns] = torch_order(state, f"attn.{part}")
    close(torch_order(got, "lora_unet_attn"), want)
    del state.modules["attn.v"], state.tensors["attn.v.lora_A"], state.tensors["attn.v.lora_B"]
    with pytest.raises(ConfigError, match="its width is not known"):
        save_adapter(tmp_path / "y.safetensors", state, format="kohya")


# Round trips, and what a file cannot hold.

DTYPES = {"F16": np.float16, "BF16": np.float32, "F32": np.float32, "F64": np.float64}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 3),
    window=st.sampled_from([(), (1,), (1, 1), (3, 3), (1, 3), (2, 1, 2)]),
    dtype=st.sampled_from(sorted(DTYPES)),
    alpha=st.one_of(st.none(), st.floats(-100, 100, width=16).filter(bool)),
    dora=st.booleans(),
    seed=st.integers(0, 99),
)
def test_round_trips_are_bit_equal(tmp_path, sizes, window, dtype, alpha, dora, seed):
    (k, c, r), rng, ones = sizes, np.random.default_rng(seed), [1] * len(window)
    tensors = {"lora_down.weight": rng.standard_normal((r, c, *window)), "lora_up.weight": rng.standard_normal((k, r, *ones))}
    tensors |= {"dora_scale": rng.random((k, 1, *ones)) + 0.5} if dora else {}
    tensors |= {} if alpha is None else {"alpha": np.array(alpha)}
    tensors = {key: array.astype(DTYPES[dtype]) for key, array in tensors.items()}
    if dtype == "BF16":
        tensors = {key: to_float32(to_bits(array)) for key, array in tensors.items()}
    path = write(tmp_path / "x.safetensors", tensors, bfloat16=tensors if dtype == "BF16" else ())
    export_adapters(path, tmp_path / "y.h5", force=True)
    export_adapters(tmp_path / "y.h5", tmp_path / "z.safetensors", to="kohya", force=True)
    with open_safetensors(tmp_path / "z.safetensors") as reader:
        assert {name.removeprefix(f"{M}.") for name in reader.names()} == tensors.keys() | {"alpha"}
        for key, array in tensors.items():
            assert (reader.dtype(f"{M}.{key}"), reader.array(f"{M}.{key}").tobytes()) == (dtype, array.tobytes())


REFUSED = {
    "an embedding": ({"layer_type": "embedding"}, {}, "embeddings"),
    "experts": ({"experts": 1}, {}, "stacks of experts"),
    "einsum": ({"layer_type": "einsum"}, {}, "EinsumDense"),
    "groups": ({"layer_type": "conv2d", "kernel": [2, 2], "groups": 2}, {}, "in groups"),
    "no window": ({"layer_type": "conv2d"}, {}, "must have its window"),
    "another method": ({"method": "vera"}, {}, "'vera' has no place"),
    "loha of loratk's order": ({"method": "loha"}, {"hada_w1_a": np.ones((5, 2))}, "as torch keeps them"),
    "a whole module": ({"method": "full"}, {"weight": np.ones((5, 4))}, "replaces a whole module"),
    "another parameter": ({}, {"more": np.ones(3)}, "'more' has no place"),
}


@pytest.mark.parametrize(("changes", "tensors", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_file_cannot_hold(tmp_path, changes, tensors, said):
    record = {"method": "lora", "layer_type": "linear", "shape": [4, 5], "rank": 2, "alpha": 2.0, "scaling": 1.0} | changes
    stack = (1,) if "experts" in changes else ()
    factors = {"lora_A": np.ones((*stack, 4, 2)), "lora_B": np.ones((*stack, 2 // changes.get("groups", 1), 5))}
    held = ({} if changes.get("method") in ("full", "loha") else factors) | tensors
    state = AdapterState("a", {}, {f"x.{key}": array for key, array in held.items()}, {"x": record})
    with pytest.raises(ConfigError, match=said):
        save_adapter(tmp_path / "y.safetensors", state, format="kohya")
    assert list(tmp_path.iterdir()) == []


def test_biases_are_written_as_differences(tmp_path):
    state = plain("unet.a", alpha=4.0, scaling=2.0)
    state.tensors["unet.a.lora_bias"], state.tensors["unet.a.bias"] = np.ones(5), np.full(5, 0.5)
    notes = save_adapter(tmp_path / "y.safetensors", state, format="kohya")
    assert any("lora_bias" in note for note in notes)
    got = load_adapter(tmp_path / "y.safetensors").states[0]
    assert got.tensors["lora_unet_a.bias"].tolist() == [2.5] * 5


def test_two_adapters_need_two_files(tmp_path):
    states = [plain("unet.a"), plain("unet.a")]
    states[1] = AdapterState("b", {}, states[1].tensors, states[1].modules)
    with pytest.raises(ConfigError, match="several adapters"):
        save_adapter(tmp_path / "y.safetensors", states, format="kohya")


def test_the_suffix_alone_does_not_choose(tmp_path):
    with pytest.raises(ConfigError, match=r"'kohya', 'safetensors'.*--to") as caught:
        save_adapter(tmp_path / "y.safetensors", plain("unet.a"))
    assert "use this suffix" in str(caught.value)


# Detection.


def detected(tmp_path, *keys, metadata=None):
    write_safetensors(tmp_path / "x.safetensors", {key: np.ones(1) for key in keys}, metadata or {})
    return detect_format(tmp_path / "x.safetensors").format.name


@pytest.mark.parametrize(
    "key",
    ["lora_unet_a.lora_down.weight", "a.b.lora_up.weight", "lycoris_a.hada_w1_a", "lora_te1_a.lokr_w1", "lora_unet_a.diff",
     "lora_unet_a.w_norm", "lora_te_a.on_input", "lora_unet_a.oft_blocks", "lora_unet_a.a1.weight"],
)  # fmt: skip
def test_it_is_known_by_its_tensors(tmp_path, key):
    assert detected(tmp_path, key) == "kohya"
    assert f"such as {key!r}" in detect_format(tmp_path / "x.safetensors").evidence


@pytest.mark.parametrize(
    ("keys", "metadata"),
    [
        (["a.b.weight", "a.b.bias"], {}),
        (["model.diff"], {}),
        (["base_model.model.a.hada_w1_a"], {}),
        (["a.lora_a", "a.lora_b"], {}),
        (["lora_unet_a.alpha"], {}),
        (["lora_unet_a.lora_down.weight"], {"format": "loratk-adapter"}),
    ],
)
def test_what_belongs_to_others(tmp_path, keys, metadata):
    write_safetensors(tmp_path / "x.safetensors", {key: np.ones(1) for key in keys}, metadata)
    assert default_registry().formats["kohya"].detect(tmp_path / "x.safetensors") is None


# Broken and hostile files.

GOOD = lora(dtype=np.float32)
BROKEN = {
    "no up": ({"lora_down.weight": GOOD["lora_down.weight"]}, "'lora_up.weight' is missing"),
    "no down": ({"lora_up.weight": GOOD["lora_up.weight"]}, "'lora_down.weight' is missing"),
    "ranks": (GOOD | {"lora_up.weight": normal(5, 3)}, r"'lora_up.weight' must have shape \(k, r = 2, ...\), found \(5, 3\)"),
    "axes": (GOOD | {"lora_up.weight": normal(5, 2, 1, 1)}, "both have 2 axes"),
    "one axis": (GOOD | {"lora_down.weight": normal(2)}, "'lora_down.weight' must have shape"),
    "six axes": (GOOD | {"lora_down.weight": normal(2, 1, 1, 1, 1, 1)}, "at most 5"),
    "rank 0": ({"lora_down.weight": np.zeros((0, 4)), "lora_up.weight": np.zeros((5, 0))}, "has no numbers"),
    "no inputs": ({"lora_down.weight": np.zeros((2, 0)), "lora_up.weight": normal(5, 2)}, "has no numbers"),
    "whole numbers": (GOOD | {"lora_down.weight": np.ones((2, 4), np.int64)}, "must be floating-point numbers, found int64"),
    "NaN as alpha": (GOOD | {"alpha": np.array(np.nan)}, "'alpha' must be one finite number"),
    "two alphas": (GOOD | {"alpha": np.ones(2)}, "'alpha' must be one finite number"),
    "infinite scalar": (GOOD | {"scalar": np.array(np.inf)}, "'scalar' must be one finite number"),
    "NaN inside": (GOOD | {"lora_up.weight": np.full((5, 2), np.nan)}, "NaN or infinite"),
    "part of a sparse part": (GOOD | {"bias_size": np.ones(2, np.int64)}, "'bias_indices' is missing"),
    "dora for nobody": (GOOD | {"dora_scale": np.ones((7, 1))}, "'dora_scale' must have shape"),
    "two methods": (GOOD | {"hada_w1_a": normal(5, 2)}, "'hada_w1_a' does not belong to lora"),
    "unknown": (GOOD | {"lora_down.bias": normal(2)}, r"'lora_unet_m.lora_down.bias' is none that loratk knows"),
    "half of loha": ({"hada_w1_a": normal(5, 2), "hada_w1_b": normal(2, 4), "hada_w2_a": normal(5, 2)}, "'hada_w2_b' is missing"),
    "half of a core": ({"hada_w1_a": normal(2, 5), "hada_w1_b": normal(2, 4), "hada_w2_a": normal(2, 5), "hada_w2_b": normal(2, 4),
                        "hada_t1": normal(2, 2, 3)}, "'hada_t2' is missing"),
    "cores of two windows": ({"hada_w1_a": normal(2, 5), "hada_w1_b": normal(2, 4), "hada_w2_a": normal(2, 5), "hada_w2_b": normal(2, 4),
                              "hada_t1": normal(2, 2, 3), "hada_t2": normal(2, 2, 4)}, "must have the window"),
    "half of lokr": ({"lokr_w1": normal(2, 2)}, "'lokr_w2' is missing"),
    "two first factors": ({"lokr_w1": normal(2, 2), "lokr_w1_a": normal(2, 1), "lokr_w1_b": normal(1, 2), "lokr_w2": normal(3, 3)},
                          "'lokr_w1' does not belong to lokr of this kind"),
    "glora": ({f"{name}.weight": normal(4, 2) for name in ("a1", "a2", "b1", "b2")}, "'a2.weight' must have shape"),
    "oft": ({"oft_blocks": normal(3, 2, 4)}, "must have shape"),
    "ia3": ({"weight": normal(4), "on_input": np.ones(2)}, "'on_input' must be one number"),
    "ia3 without its side": ({"weight": normal(4), "alpha": np.array(1.0)}, "no adapter"),
    "differences of two kinds": ({"diff": normal(4, 4), "w_norm": normal(4)}, "can have one"),
    "alpha alone": ({"alpha": np.array(1.0)}, "no adapter"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_module_is_refused(tmp_path, tensors, said):
    path = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(FormatError, match=said):
        load_adapter(path, format="kohya")


def test_all_faults_are_told_at_once(tmp_path):
    arrays = {"lora_unet_a.lora_down.weight": normal(2, 4), "lora_unet_b.hada_w1_a": normal(2, 2)}
    arrays |= {"lora_unet_c.lora_up.weight": normal(5, 2), "what": normal(1)}
    write_safetensors(tmp_path / "x.safetensors", arrays, {})
    with pytest.raises(FormatError) as caught:
        load_adapter(tmp_path / "x.safetensors")
    assert all(part in str(caught.value) for part in ("lora_unet_a", "lora_unet_b", "lora_unet_c", "'what'"))


@pytest.mark.parametrize("name", ["lora_unet_a\n", "lora_unet_\x1b[31m", "lora_unet_a..b", ".a"])
def test_names_that_no_module_has(tmp_path, name):
    path = write(tmp_path / "x.safetensors", GOOD, name=name)
    with pytest.raises(FormatError, match="name"):
        load_adapter(path, format="kohya")


def test_a_small_file_does_not_become_a_huge_one(tmp_path):
    """Kronecker and Tucker products of a few numbers may have more than a machine does."""
    for tensors in (
        {"lokr_w1": np.ones((1000, 1000), np.float32), "lokr_w2": np.ones((1000, 1000), np.float32)},
        {"lora_down.weight": np.ones((1, 30_000, 1), np.float32), "lora_up.weight": np.ones((1, 1, 1), np.float32),
         "lora_mid.weight": np.ones((1, 1, 30_000), np.float32)},
    ):  # fmt: skip
        path = write(tmp_path / "x.safetensors", tensors)
        with pytest.raises(ConfigError, match="above 268435456"):
            load_adapter(path, options={"factor": "yes"})


@pytest.mark.parametrize("factor", ["maybe", "0", "-1", "1" * 30, "²"])
def test_factor_is_yes_no_or_a_rank(tmp_path, factor):
    with pytest.raises(ConfigError, match="the option factor must be"):
        read(tmp_path, lora(), factor=factor)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "scalar", "dora_scale", "hada_w1_a", "hada_w1_b",
                         "hada_w2_a", "hada_w2_b", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "diff", "diff_b", "w_norm",
                         "on_input", "weight", "oft_blocks", "a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"]),
        st.tuples(st.lists(st.integers(0, 3), max_size=6), st.sampled_from(["f2", "f4", "f8", "i4", "?"])),
        min_size=1, max_size=6,
    ),
    st.sampled_from(["no", "yes", "1"]),
)  # fmt: skip
def test_any_tensors_are_read_or_refused(tmp_path, shapes, factor):
    write(tmp_path / "x.safetensors", {key: np.ones(shape, dtype) for key, (shape, dtype) in shapes.items()})
    try:
        state = load_adapter(tmp_path / "x.safetensors", format="kohya", options={"factor": factor}).states[0]
        save_adapter(tmp_path / "y.safetensors", state, format="kohya")
        again = load_adapter(tmp_path / "y.safetensors", format="kohya").states[0]
    except LoratkError:
        return
    assert again.tensors.keys() == state.tensors.keys()
