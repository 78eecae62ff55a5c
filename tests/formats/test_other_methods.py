"""Adapters of other methods (LoHa, LoKr, AdaLoRA, VeRA, IA3, ...) as plain LoRA in every format, and merged, as PEFT and LyCORIS do."""

import json
from pathlib import Path

import numpy as np
import pytest
from kohya_files import GOLDEN, golden, lokr, lora, normal, read

from loratk import load_adapter, save_adapter
from loratk.convert import export_adapters, export_merged
from loratk.describe import describe
from loratk.errors import ConfigError, FormatError
from loratk.exchange import AdapterState, Checkpoint, diff, plain_lora
from loratk.exchange.factors import dense_update
from loratk.io import SafetensorsStore, open_safetensors, write_safetensors

PEFT = Path(__file__).parent.parent / "data/peft"
STORES = {"safetensors": SafetensorsStore()}
WANTED = [("adalora", "lin"), ("vera", "lin"), ("loha", "lin"), ("loha", "c1"), ("lokr", "lin")]
TARGETS = {
    "gguf": ("x.gguf", {"architecture": "llama", "permute": "no", "names": "names.json"}),
    "mlx": ("x", {"num_blocks": 1}),
    "keras": ("x.lora.h5", {"map": "0=lin,1=c1,2=grouped"}),
    "peft": ("x", {}),
    "diffusers": ("x.safetensors", {"component": "unet"}),
    "kohya": ("x.safetensors", {}),
    "hdf5": ("x.h5", {}),
}


def peft_update(name, module):
    """What PEFT computes, as a matrix (k, d), d as torch has it."""
    with np.load(PEFT / "outputs.npz") as outputs:
        update = outputs[f"{name}.{module}"].astype(np.float64)
    return update.reshape(len(update), -1)


def torch_matrix(record, held):
    """The update of a LoRA module as a matrix (k, d), d as torch has it."""
    matrix = dense_update(record, held)
    window = record.get("kernel", [])
    return np.moveaxis(matrix.reshape(int(np.prod(window)), -1, matrix.shape[1]), (2, 1), (0, 1)).reshape(matrix.shape[1], -1)


def relative(got, want):
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize(
    ("target", "name", "module"),
    # the convolution of one axis has torch's window (3, 1), which loratk takes as two
    [(target, *case) for target in TARGETS for case in WANTED if case[1] == "lin" or target not in ("gguf", "mlx", "keras")],
)
def test_what_peft_wrote_with_another_method_goes_everywhere_as_lora(tmp_path, monkeypatch, target, name, module):
    """PEFT's folder to each format and back: the update is PEFT's own to 1e-6."""
    monkeypatch.chdir(tmp_path)
    Path("names.json").write_text(json.dumps({"lin": "blk.0.ffn_up"}))
    file, options = TARGETS[target]
    done = export_adapters(
        PEFT / name, file, to=target, select=[module, "root"] if name == "vera" else [module], bake=True, portable=True, options=options
    )
    assert any(f"{name} of rank" in note and "exact but for rounding" in note for note in done.notes)
    reads = {key: value for key, value in options.items() if target in ("gguf", "keras") and key != "num_blocks"}
    (state,) = load_adapter(file, format=target, options=reads).states
    ((path, record),) = state.modules.items()
    assert record["method"] == "lora"
    assert relative(torch_matrix(record, state.parameters()[path]), peft_update(name, module)) < 1e-6


@pytest.mark.parametrize("name", ["adalora", "loha", "lokr", "vera", "ia3"])
def test_without_bake_another_method_is_refused_by_name_and_with_a_cure(tmp_path, name):
    with pytest.raises(ConfigError, match=r"other methods .*'lin'.*; --bake makes plain LoRA") as caught:
        export_adapters(PEFT / name, tmp_path / "x", to="mlx")
    assert "cannot hold all of it" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_has_the_method_keeps_it_unless_it_shall_be_portable(tmp_path):
    export_adapters(PEFT / "loha", tmp_path / "kept", to="peft", bake=True)
    assert {record["method"] for record in load_adapter(tmp_path / "kept").states[0].modules.values()} == {"loha"}
    export_adapters(PEFT / "loha", tmp_path / "plain", to="peft", bake=True, portable=True)
    (state,) = load_adapter(tmp_path / "plain").states
    assert {(record["method"], record["scaling"]) for record in state.modules.values()} == {("lora", 1.0)}
    with pytest.raises(ConfigError, match=r"cannot be made portable: 'loha'.*--bake"):
        export_adapters(PEFT / "loha", tmp_path / "no", to="peft", portable=True)


def test_what_only_one_of_two_formats_has_is_baked_for_the_other(tmp_path):
    """VeRA is not in LyCORIS, LoCon with a core not in PEFT, and PEFT has one method at a time."""
    export_adapters(PEFT / "vera", tmp_path / "vera.safetensors", to="kohya", bake=True)
    (state,) = load_adapter(tmp_path / "vera.safetensors").states
    assert relative(torch_matrix(*_one(state)), peft_update("vera", "lin")) < 1e-6
    tensors = {"lora_down.weight": normal(2, 4, 1, 1), "lora_up.weight": normal(5, 2, 1, 1), "lora_mid.weight": normal(2, 2, 3, 3)}
    core, _ = read(tmp_path, tensors)
    both = _joined(core, load_adapter(PEFT / "loha").states[0], keep=["lin"])
    for state, count in ((core, 1), (both, 2)):
        with pytest.raises(ConfigError, match="PEFT"):
            save_adapter(tmp_path / "folder", state, format="peft")
        save_adapter(tmp_path / "folder", state, format="peft", bake=True)
        (got,) = load_adapter(tmp_path / "folder").states
        assert [record["method"] for record in got.modules.values()] == ["lora"] * count


def _one(state):
    ((path, record),) = state.modules.items()
    return record, state.parameters()[path]


def _joined(one, two, keep):
    modules = {**one.modules, **{module: two.modules[module] for module in keep}}
    tensors = one.tensors | {key: array for key, array in two.tensors.items() if key.rpartition(".")[0] in keep}
    return AdapterState("default", {}, tensors, modules)


def test_a_rank_keeps_the_best_and_tells_what_is_lost(tmp_path):
    want = peft_update("loha", "lin")
    u, s, v = np.linalg.svd(want)
    done = export_adapters(PEFT / "loha", tmp_path / "x", to="mlx", select=["lin"], bake=True, bake_rank=2, options={"num_blocks": 1})
    (state,) = load_adapter(tmp_path / "x").states
    assert relative(torch_matrix(*_one(state)), (u[:, :2] * s[:2]) @ v[:2]) < 1e-6
    lost = np.linalg.norm(s[2:]) / np.linalg.norm(s)
    assert f"adapter 'default', module 'lin': loha of rank 3 made LoRA of rank 2, {lost:.2%} of it lost" in done.notes


def test_the_exact_rank_is_at_most_the_smaller_side_of_the_weight():
    (state,) = load_adapter(PEFT / "loha").states
    (plain,), _ = plain_lora([state])
    assert plain.modules["lin"]["rank"] == 5  # not 3 * 3
    (state,) = load_adapter(PEFT / "adalora").states
    (plain,), _ = plain_lora([state])
    held = state.parameters()["lin"]
    assert plain.modules["lin"]["rank"] == 3
    np.testing.assert_array_equal(plain.tensors["lin.lora_A"].T, (held["adalora_A"].astype(float) * held["adalora_E"]).astype(np.float32))
    np.testing.assert_array_equal(plain.tensors["lin.lora_B"].T, held["adalora_B"])


def ia3(factors):
    return AdapterState("a", {}, {"m.ia3_l": factors}, {"m": {"method": "ia3", "orientation": "torch"}})


def based(path, **arrays):
    write_safetensors(path, {f"m.{name}": array for name, array in arrays.items()}, {})
    return Checkpoint(path, STORES)


CASES = {
    "outputs": (normal(5, 1), normal(5, 4), lambda w, f: w * (f - 1)),
    "inputs": (normal(1, 4), normal(5, 4), lambda w, f: w * (f - 1)),
    "outputs of a convolution": (normal(1, 5, 1, 1), normal(5, 4, 3, 3), lambda w, f: w * (f.reshape(5, 1, 1, 1) - 1)),
    "inputs of a convolution": (normal(1, 4, 1, 1), normal(5, 4, 3, 3), lambda w, f: w * (f - 1)),
}


@pytest.mark.parametrize(("factors", "weight", "formula"), CASES.values(), ids=CASES.keys())
def test_ia3_is_baked_and_merged_with_its_base(tmp_path, factors, weight, formula):
    """PEFT multiplies outputs and their bias, or inputs."""
    want, bias = formula(weight, factors), normal(5)
    with based(tmp_path / "base.safetensors", weight=weight, bias=bias) as base:
        (plain,), notes = plain_lora([ia3(factors)], base=base, rank=5)
        record, held = _one(plain)
        assert relative(torch_matrix(record, held), want.reshape(5, -1)) < 1e-12
        assert any("ia3 made LoRA of rank" in note and "0.00% of it lost" in note for note in notes)
        with pytest.raises(ConfigError, match=r"of no low rank; say which rank to make it \(--bake-rank N\)"):
            plain_lora([ia3(factors)], base=base)
    with pytest.raises(ConfigError, match="depends on the base's weight; give the base"):
        plain_lora([ia3(factors)], rank=2)
    write_safetensors(tmp_path / "another.safetensors", {"n.weight": weight}, {})
    with Checkpoint(tmp_path / "another.safetensors", STORES) as base, pytest.raises(ConfigError, match="has no module of that name"):
        plain_lora([ia3(factors)], base=base, rank=2)
    save_adapter(tmp_path / "ia3.h5", ia3(factors))
    export_merged(tmp_path / "ia3.h5", tmp_path / "base.safetensors", tmp_path / "merged.safetensors")
    outputs = factors.size == 5
    with open_safetensors(tmp_path / "merged.safetensors") as reader:
        assert relative(reader.array("m.weight"), weight + want) < 1e-12
        np.testing.assert_allclose(reader.array("m.bias"), bias * factors.reshape(-1) if outputs else bias)
    np.testing.assert_allclose(held.get("bias", 0.0), bias * (factors.reshape(-1) - 1) if outputs else 0.0)


def test_what_ia3_does_not_tell_is_not_guessed(tmp_path):
    with (
        based(tmp_path / "base.safetensors", weight=normal(4, 4, 3, 3)) as base,
        pytest.raises(ConfigError, match="does not tell for which"),
    ):
        plain_lora([ia3(normal(1, 4, 1, 1))], base=base, rank=2)
    with based(tmp_path / "b.safetensors", weight=normal(5, 4)) as base, pytest.raises(ConfigError, match="3 factors for 5 outputs"):
        plain_lora([ia3(normal(3, 1))], base=base, rank=2)


def test_vera_without_a_base_needs_one_layer_and_its_shared_matrices():
    a, b = normal(2, 6), normal(7, 2)
    record = {"method": "vera", "orientation": "torch"}
    modules = {"root": record, "p": record | {"rank": 2}, "q": record | {"rank": 2}}
    tensors = {"root.vera_A": a, "root.vera_B": b, "p.vera_lambda_b": normal(7), "q.vera_lambda_b": normal(5)}
    tensors |= {f"{module}.vera_lambda_d": normal(2) for module in "pq"}
    state = AdapterState("a", {}, tensors, modules)
    with pytest.raises(ConfigError, match=r"'p'.*how many inputs it has is known from the base alone(.|\n)*'q'"):
        plain_lora([state])
    bare = AdapterState("a", {}, {key: array for key, array in tensors.items() if key[0] == "p"}, {"p": modules["p"] | {"shape": [6, 7]}})
    with pytest.raises(ConfigError, match="shared matrices are not there"):
        plain_lora([bare])


def test_vera_takes_the_corner_that_each_layer_needs(tmp_path):
    a, b = normal(2, 6), normal(7, 2)
    record = {"method": "vera", "orientation": "torch", "rank": 2}
    outer, inner = normal(5), normal(2)
    tensors = {"root.vera_A": a, "root.vera_B": b, "m.vera_lambda_b": outer, "m.vera_lambda_d": inner}
    state = AdapterState("a", {}, tensors, {"root": {"method": "vera", "orientation": "torch"}, "m": record})
    weight = normal(5, 4)
    want = outer[:, None] * (b[:5] @ (inner[:, None] * a[:, :4]))
    with based(tmp_path / "base.safetensors", weight=weight) as base:
        (plain,), _ = plain_lora([state], base=base)
    assert list(plain.modules) == ["m"]
    assert relative(torch_matrix(*_one(plain)), want) < 1e-12
    save_adapter(tmp_path / "x.h5", state)
    export_merged(tmp_path / "x.h5", tmp_path / "base.safetensors", tmp_path / "y.safetensors")
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        assert relative(reader.array("m.weight"), weight + want) < 1e-12
    write_safetensors(tmp_path / "wide.safetensors", {"m.weight": normal(5, 9)}, {})
    with pytest.raises(FormatError, match="needs the corners"):
        export_merged(tmp_path / "x.h5", tmp_path / "wide.safetensors", tmp_path / "z.safetensors")


def test_a_sparse_part_is_baked_as_near_as_its_rank_allows_and_merged_exactly(tmp_path):
    tensors = lora() | {"bias_indices": np.array([[0, 4, 4], [2, 3, 3]], np.int16), "bias_values": normal(3), "bias_size": np.array([5, 4])}
    state, _ = read(tmp_path, tensors)
    want = tensors["lora_up.weight"] @ tensors["lora_down.weight"]
    np.add.at(want, tuple(tensors["bias_indices"]), tensors["bias_values"])
    u, s, v = np.linalg.svd(want)
    (plain,), notes = plain_lora([state])
    assert relative(torch_matrix(*_one(plain)), (u[:, :2] * s[:2]) @ v[:2]) < 1e-12
    assert any(f"{np.linalg.norm(s[2:]) / np.linalg.norm(s):.2%} of it lost" in note for note in notes)
    (plain,), _ = plain_lora([state], rank=4)
    assert relative(torch_matrix(*_one(plain)), want) < 1e-12
    write_safetensors(tmp_path / "base.safetensors", {"m.weight": normal(5, 4)}, {})
    export_merged(tmp_path / "x.safetensors", tmp_path / "base.safetensors", tmp_path / "y.safetensors")
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        assert relative(reader.array("m.weight") - normal(5, 4), want) < 1e-12
    state, _ = read(tmp_path, tensors | {"bias_indices": np.array([[0, 5, 4], [2, 3, 3]])})
    with pytest.raises(ConfigError, match="its sparse part, of size"):
        plain_lora([state])


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.safetensors")))
def test_what_lycoris_merges(tmp_path, name):
    """Every file of LyCORIS merged into its base from its own tensors gives the weight that LyCORIS makes of it."""
    want = golden(tmp_path, name)
    export_merged(tmp_path / "x.safetensors", tmp_path / "base.safetensors", tmp_path / "y.safetensors")
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        got = reader.array("m.weight").astype(np.float64)
    merged = want.get("merged", want["base"] + want["diff"])
    assert relative(got - want["base"], (merged - want["base"]).astype(np.float64)) < 1e-5


@pytest.mark.parametrize("name", ["lora-dora-in", "glora-linear", "ia3-linear", "loha-dora"])
def test_what_lycoris_makes_with_the_base_is_baked(tmp_path, name):
    """At full rank the update is LyCORIS's own, whatever the method."""
    want = golden(tmp_path, name)
    export_adapters(
        tmp_path / "x.safetensors", tmp_path / "y.safetensors", to="diffusers", base=tmp_path / "base.safetensors", bake=True,
        bake_rank=min(want["base"].shape), options={"component": "unet"},
    )  # fmt: skip
    (state,) = load_adapter(tmp_path / "y.safetensors").states
    record, held = _one(state)
    merged = want.get("merged", want["base"] + want["diff"])
    if "magnitude" in held:
        return  # diffusers keeps DoRA, which test_kohya compares
    assert relative(torch_matrix(record, held), (merged - want["base"]).astype(np.float64)) < 1e-5


def test_a_convolution_without_a_core_is_one_by_its_base(tmp_path):
    weight = normal(12, 10, 3, 3)
    tensors, one, two = lokr("full", "low", (3, 3))
    record = {"method": "lokr", "orientation": "torch", "shape": [90, 12], "rank": 2, "alpha": 3.0, "scaling": 1.5}
    state = AdapterState("a", {}, {f"m.{key}": array for key, array in tensors.items() if key != "alpha"}, {"m": record})
    with based(tmp_path / "base.safetensors", weight=weight) as base:
        (plain,), _ = plain_lora([state], base=base)
    assert (plain.modules["m"]["layer_type"], plain.modules["m"]["kernel"]) == ("conv2d", [3, 3])
    assert relative(torch_matrix(*_one(plain)), 1.5 * np.einsum("ac,bd...->abcd...", one, two).reshape(12, 90)) < 1e-12
    with (
        based(tmp_path / "other.safetensors", weight=normal(11, 10, 3, 3)) as base,
        pytest.raises(ConfigError, match="is it the right base"),
    ):
        plain_lora([state], base=base)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_whole_factors_of_lokr_keep_their_scaling_where_readers_take_it_as_one(tmp_path, dtype):
    """PEFT multiplies the product of two whole factors by alpha / r, LyCORIS by nothing."""
    one, two = normal(3, 2, dtype=dtype), normal(4, 5, dtype=dtype)
    record = {"method": "lokr", "orientation": "torch", "shape": [10, 12], "rank": 3, "alpha": 4.0, "scaling": 4 / 3}
    state = AdapterState("a", {}, {"lycoris_m.lokr_w1": one, "lycoris_m.lokr_w2": two}, {"lycoris_m": record})
    notes = save_adapter(tmp_path / "x.safetensors", state, format="kohya")
    assert any("multiplied into 'lokr_w1'" in note for note in notes)
    (got,) = load_adapter(tmp_path / "x.safetensors").states
    assert got.modules["lycoris_m"]["scaling"] == 1.0
    kron = np.kron(*(got.tensors[f"lycoris_m.lokr_w{n}"].astype(np.float64) for n in (1, 2)))
    assert relative(kron, 4 / 3 * np.kron(one.astype(np.float64), two.astype(np.float64))) < 1e-7


@pytest.mark.parametrize("name", ["adalora", "loha", "lokr", "vera"])
def test_an_adapter_and_what_was_baked_of_it_are_the_same(tmp_path, name):
    """What is compared is what they add, not the method."""
    (state,) = load_adapter(PEFT / name).states
    (plain,), _ = plain_lora([state])
    assert diff(state, plain).same
    assert not diff(state, plain).identical
    assert diff(state, state).identical
    if name == "vera":
        return  # it has no scaling
    half = AdapterState(
        "default", {}, dict(state.tensors), {m: record | {"scaling": record["scaling"] / 2} for m, record in state.modules.items()}
    )
    for other in (plain, state):
        (module, *_) = diff(half, other).modules
        assert module.relative == pytest.approx(0.5)
        assert module.cosine == pytest.approx(1.0)


def test_a_folder_made_lora_has_no_fields_of_the_method_it_had(tmp_path):
    export_adapters(PEFT / "loha", tmp_path / "x", to="peft", bake=True, portable=True)
    fields = json.loads((tmp_path / "x/adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA"
    assert not {"rank_dropout", "module_dropout", "use_effective_conv2d", "init_weights", "alpha"} & fields.keys()
    assert load_adapter(PEFT / "loha").states[0].metadata["peft.use_effective_conv2d"]


def test_the_update_of_ia3_asks_for_all_that_it_needs_at_once():
    with pytest.raises(ConfigError, match=r"\(--bake-rank N\), and give the base's weights \(--base\)"):
        plain_lora([ia3(normal(5, 1))])


A, B, W = np.ones((5, 2)), np.ones((2, 4)), np.ones((5, 4))
BROKEN = {
    "a factor missing": ("loha", {"hada_w1_a": A, "hada_w1_b": B, "hada_w2_a": A}, "needs the parameters 'hada_w1_a', 'hada_w1_b'"),
    "other names": ("lokr", {"w1": A}, "needs the parameters 'lokr_w1' or 'lokr_w1_a', 'lokr_w1_b', found 'w1'"),
    "ranks apart": ("loha", {"hada_w1_a": A, "hada_w1_b": B[:1], "hada_w2_a": A, "hada_w2_b": B}, "do not fit each other"),
    "sides apart": ("loha", {"hada_w1_a": A, "hada_w1_b": B, "hada_w2_a": A[:3], "hada_w2_b": B}, "do not fit each other"),
    "no matrix": ("locon", {"lora_up": np.ones(()), "lora_down": B}, "do not fit each other"),
    "a core of a side": ("locon", {"lora_up": A, "lora_down": B, "lora_mid": np.ones((3, 3, 2))}, "do not fit each other"),
    "another weight": ("lokr", {"lokr_w1": A, "lokr_w2": B}, r"acts as \[4, 5\], its parameters make \[8, 10\]"),
    "values of another length": ("adalora", {"adalora_A": B, "adalora_B": A, "adalora_E": np.ones((3, 1))}, "do not fit each other"),
    "no places": ("locon", {"lora_up": A, "lora_down": B, "bias_values": np.ones(2), "bias_size": np.array([5, 4])}, "do not fit each"),
    "huge": ("locon", {"lora_up": np.ones((1 << 15, 1)), "lora_down": np.ones((1, 1 << 15)), "bias_values": np.ones(1),
                       "bias_indices": np.zeros((2, 1), int), "bias_size": np.array([1 << 15, 1 << 15])}, "above"),
}  # fmt: skip


@pytest.mark.parametrize(("method", "held", "want"), BROKEN.values(), ids=BROKEN.keys())
def test_parameters_that_make_no_update_are_an_error_that_names_them(tmp_path, method, held, want):
    """In loratk's own files any method may have any parameters."""
    shape = [1 << 15, 1 << 15] if want == "above" else [4, 5]
    record = {"method": method, "orientation": "torch", "shape": shape, "rank": 2, "alpha": 2.0, "scaling": 1.0}
    state = AdapterState("a", {}, {f"m.{name}": array for name, array in held.items()}, {"m": record})
    with pytest.raises(ConfigError, match=want):
        plain_lora([state])
    if want == "above":
        return
    save_adapter(tmp_path / "x.h5", state)
    write_safetensors(tmp_path / "base.safetensors", {"m.weight": W}, {})
    with pytest.raises(FormatError, match=r"needs the|do not fit|output first, of a weight"):
        export_merged(tmp_path / "x.h5", tmp_path / "base.safetensors", tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()
    assert diff(state, AdapterState("b", {}, {key: array * 2 for key, array in state.tensors.items()}, state.modules)).differing


@pytest.mark.parametrize(("name", "module"), WANTED)
def test_the_size_and_the_spectrum_of_an_update_are_shown_whatever_its_method(name, module):
    want = np.linalg.svd(peft_update(name, module), compute_uv=False)
    (report,) = describe(PEFT / name, spectra=True).adapters
    found = next(part for part in report.modules if part.name == module)
    assert found.delta_norm == pytest.approx(np.linalg.norm(want), rel=1e-6)
    assert found.spectrum is not None
    np.testing.assert_allclose(found.spectrum.values, want[: len(found.spectrum.values)], rtol=1e-5, atol=1e-6)


def test_ia3_of_peft_is_none_of_lycoris(tmp_path):
    """They have one name, and other parameters: refused by name, and made LoRA when asked."""
    state = ia3(normal(5, 1))
    with pytest.raises(ConfigError, match=r"'ia3_l' does not belong to ia3 of this kind; --bake makes LoRA of it"):
        save_adapter(tmp_path / "x.safetensors", state, format="kohya")
    with based(tmp_path / "base.safetensors", weight=normal(5, 4)) as base:
        save_adapter(tmp_path / "x.safetensors", state, format="kohya", base=base, bake=True, bake_rank=4)
    (got,) = load_adapter(tmp_path / "x.safetensors").states
    assert relative(torch_matrix(*_one(got)), normal(5, 4) * (normal(5, 1) - 1)) < 1e-6
