"""kohya and LyCORIS files: every method's update as its formula gives it, and as LyCORIS computes it."""

from itertools import product

import numpy as np
import pytest
from kohya_files import GOLDEN, M, close, golden, lokr, lora, normal, read, torch_order

from loratk.errors import ConfigError
from loratk.exchange import Checkpoint, load_adapter, save_adapter
from loratk.exchange.bake import dora_update
from loratk.io import SafetensorsStore, open_safetensors, write_safetensors

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


def test_the_side_of_a_dora_scale_of_a_square_layer(tmp_path):
    for shape, method in (((4, 1), "dora"), ((1, 4), "dora_in")):
        assert read(tmp_path, lora(k=4) | {"dora_scale": np.ones(shape)})[0].modules[M]["method"] == method


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
