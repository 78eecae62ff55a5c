import json

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel
from loratk.describe import describe
from loratk.exchange import AdapterState, write_adapters
from loratk.io import Hdf5Store, write_safetensors
from loratk.nn import Linear, Sequential
from loratk.plugins import default_registry


def report(files):
    return describe(files.adapters)


def test_norms_are_those_of_the_arrays_and_of_the_dense_update(files):
    one, two = report(files).adapters
    state = files.model.state("one")
    for module in one.modules:
        a, b = (state[f"{module.name}.{key}"].astype(np.float64) for key in ("lora_A", "lora_B"))
        assert module.norms["lora_A"] == pytest.approx(np.linalg.norm(a), rel=1e-12)
        assert module.norms["lora_B"] == pytest.approx(np.linalg.norm(b), rel=1e-12)
        assert module.delta_norm == pytest.approx(np.linalg.norm(1.5 * a @ b), rel=1e-12)
        assert (module.rank, module.alpha, module.scaling) == (2, 3.0, 1.5)
    assert [module.delta_norm for module in two.modules] == [None]
    assert set(two.modules[0].norms) == {"lora_A", "lora_B", "magnitude"}


def test_counts_and_shapes(files):
    one, two = report(files).adapters
    assert one.parameters == sum(array.size for array in files.model.state("one").values())
    assert [module.shape for module in one.modules] == [[6, 5], [5, 4]]
    assert [module.name for module in two.modules] == ["2"]
    assert one.fingerprint == files.model.fingerprint()
    assert one.metadata == {"task": "test"}


def test_text(run, files):
    got = run("inspect", files.adapters)
    assert got.exit_code == 0
    assert got.stderr == ""
    text = " ".join(got.stdout.split())
    assert "hdf5" in text
    assert "2 adapters" in text
    assert "adapter 'one'" in text
    assert "task: test" in text
    assert "its string 'format' is 'loratk-adapter'" in text
    assert "2 modules with rank 2, alpha 3, scaling 1.5" in text
    assert "0 linear lora 6 x 5 2 3 1.5" in text
    assert "2 linear dora 5 x 4 1 2 2" in text


def test_json_holds_all_of_it(run, files):
    got = json.loads(run("inspect", files.adapters, "--json").stdout)
    assert got == report(files).to_dict()
    assert got["format"] == "hdf5"
    assert got["bytes"] == files.adapters.stat().st_size
    assert got["adapters"][0]["config"]["rank"] == 2


def test_a_file_of_weights_shows_its_arrays(run, files):
    got = run("inspect", files.padded)
    text = " ".join(got.stdout.split())
    assert "5 arrays, no adapters" in text
    assert "0.weight 6 x 5 float32" in text
    assert "steps 3 int64" in text
    assert "note: kept" in text
    assert json.loads(run("inspect", files.padded, "--json").stdout)["strings"] == {"note": "kept"}


def adapter(path, factors, **changes):
    """A file with one adapter: module -> (A, B)."""
    tensors, modules = {}, {}
    for name, (a, b) in factors.items():
        tensors |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
        record = {"method": "lora", "layer_type": "linear", "shape": [len(a), b.shape[1]], "rank": len(b), "alpha": 1.0, "scaling": 0.5}
        modules[name] = record | changes
    write_adapters(path, [AdapterState("mine", {}, tensors, modules, metadata={"note": "a\x1b[31mb\n"})], stores=default_registry().stores)
    return path


def test_what_is_not_finite_can_still_be_looked_at(run, files, tmp_path):
    arrays = {"adapters/mine/0/lora_A": np.full((3, 1), np.nan), "adapters/mine/0/lora_B": np.ones((1, 2))}
    head = {"format": "loratk-adapter", "format_version": "1", "adapters/mine/config": "{}"}
    record = {"method": "lora", "rank": "1", "alpha": "1.0", "scaling": "1.0"}
    Hdf5Store().write(tmp_path / "a.h5", arrays, head | {f"adapters/mine/0/{key}": text for key, text in record.items()})
    got = run("inspect", tmp_path / "a.h5", "--spectrum")
    assert got.exit_code == 0, got.stderr
    assert "caution: tensor '0.lora_A' has 3 values that are NaN or infinite" in got.stdout
    assert "No spectrum (it is not finite, or not a product of factors alone): 0" in got.stdout
    (module,) = json.loads(run("inspect", tmp_path / "a.h5", "--json").stdout)["adapters"][0]["modules"]
    assert (module["finite"], module["norms"]["lora_A"], module["delta_norm"]) == (False, None, None)


def test_cautions_are_told(run, tmp_path):
    path = adapter(tmp_path / "a.h5", {"0": (np.ones((3, 2)), np.zeros((2, 4)))})
    got = run("inspect", path)
    assert "caution: every update is zero: it was never trained, or its factors were lost on the way" in got.stdout
    assert json.loads(run("inspect", path, "--json").stdout)["adapters"][0]["cautions"][0].startswith("every update is zero")


def test_text_of_a_file_cannot_steer_the_terminal(run, tmp_path):
    path = adapter(tmp_path / "a.h5", {"x\x1b[2J": (np.ones((3, 2)), np.ones((2, 4)))})
    got = run("inspect", path, "--spectrum")
    assert "\x1b" not in got.stdout
    assert "note: a\\x1b[31mb\\n" in got.stdout


def test_spectrum(run, tmp_path):
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.standard_normal((9, 4)))[0], np.linalg.qr(rng.standard_normal((7, 4)))[0].T
    even, spike = (left, right), (left * np.array([10.0, 1, 1, 1]), right)
    path = adapter(tmp_path / "a.h5", {"even": even, "spike": spike, "zero": (left, right * 0)})
    modules = {module.name: module for module in describe(path, spectra=True).adapters[0].modules}
    assert modules["even"].spectrum.values == pytest.approx([0.5] * 4)
    assert modules["even"].spectrum.effective_rank == pytest.approx(4)
    assert (modules["even"].spectrum.half, modules["even"].spectrum.most) == (2, 4)
    assert modules["spike"].spectrum.first == pytest.approx(100 / 103)
    assert [modules[name].spectrum.spike for name in ("even", "spike", "zero")] == [False, True, False]
    assert modules["zero"].spectrum.effective_rank == 0
    text = " ".join(run("inspect", path, "--spectrum").stdout.split())
    assert "even 4 4 0.5 2 4 25 25 25 25" in text
    assert "spike 4 2.21 5 1 3 97 1 1 ... spike" in text
    assert "effective rank" not in run("inspect", path).stdout
    assert json.loads(run("inspect", path, "--json").stdout)["adapters"][0]["modules"][0]["spectrum"] is None


def test_a_base_shows_updates_beside_its_weights_and_what_dora_adds(run, files):
    one, two = describe(files.adapters, base=files.base).adapters
    base, merged = files.model.base_state(), files.model.merged_state("two")
    for module in one.modules:
        assert module.base_norm == pytest.approx(np.linalg.norm(base[f"{module.name}.weight"]), rel=1e-6)
    assert two.modules[0].delta_norm == pytest.approx(np.linalg.norm(merged["2.weight"] - base["2.weight"]), rel=1e-5)
    text = run("inspect", files.adapters, "--base", files.base).stdout
    assert "of |W|" in text
    assert "%" in text
    assert "the base's weights are taken input first" in text


@pytest.mark.parametrize("method", sorted(default_registry().methods))
def test_the_update_of_every_method_is_measured(tmp_path, method):
    rng = np.random.default_rng(0)
    model = LoraModel.adapt(Sequential(Linear(6, 5, rng=0)), LoraConfig(rank=2, method=method))
    state = model.state()
    model.load_state(
        {name: rng.standard_normal(array.shape).astype("f4") if array.dtype.kind == "f" else array for name, array in state.items()}
    )
    model.save(tmp_path / "a.h5")
    Hdf5Store().write(tmp_path / "base.h5", model.base_state(), {})
    (module,) = describe(tmp_path / "a.h5", base=tmp_path / "base.h5").adapters[0].modules
    want = np.linalg.norm(model.merged_state()["0.weight"] - model.base_state()["0.weight"])
    assert want > 0
    assert module.delta_norm == pytest.approx(want, rel=1e-5)
    (alone,) = describe(tmp_path / "a.h5").adapters[0].modules
    assert alone.delta_norm in ([None] if method in ("dora", "ia3") else [pytest.approx(want, rel=1e-5)])


@pytest.mark.parametrize("held", [{"foo": np.ones(3)}, {"sparse_index": np.arange(3)}, {"sparse_values": np.ones((2, 2))}])
@pytest.mark.parametrize("with_base", [False, True])
def test_wrong_parameters_have_no_size_and_can_still_be_looked_at(tmp_path, held, with_base):
    record = {"method": "sparse", "rank": 1, "shape": [6, 5]}
    write_adapters(
        tmp_path / "a.h5",
        [AdapterState("x", {}, {f"0.{key}": array for key, array in held.items()}, {"0": record})],
        stores=default_registry().stores,
    )
    Hdf5Store().write(tmp_path / "base.h5", {"0.weight": np.ones((6, 5))}, {})
    (module,) = describe(tmp_path / "a.h5", base=tmp_path / "base.h5" if with_base else None).adapters[0].modules
    assert module.delta_norm is None


def test_a_base_without_the_modules_is_told(run, files, tmp_path):
    Hdf5Store().write(tmp_path / "base.h5", {"other.weight": np.ones((2, 2))}, {})
    assert "has none of these modules" in run("inspect", files.adapters, "--base", tmp_path / "base.h5").stdout


def test_plain_safetensors_show_their_dtypes(run, tmp_path):
    write_safetensors(tmp_path / "w.safetensors", {"a.weight": np.ones((2, 3), np.float32)}, {"format": "pt"}, ["a.weight"])
    text = " ".join(run("inspect", tmp_path / "w.safetensors").stdout.split())
    assert "safetensors" in text
    assert "a.weight 2 x 3 bfloat16" in text


@pytest.mark.parametrize("more", [["--spectrum"], ["--base", "{base}"], ["--plot", "p.png"]])
def test_options_without_effect_on_weights_are_refused(run, files, more):
    got = run("inspect", files.padded, *(arg.format(base=files.base) for arg in more))
    assert got.exit_code == 2
    assert "holds no adapters" in " ".join(got.stderr.split())
    assert f"{more[0]} would have no effect" in " ".join(got.stderr.split())


def test_base_order_without_a_base_is_refused(run, files):
    assert run("inspect", files.adapters, "--base-order", "input-first").exit_code == 2


@pytest.mark.parametrize(("name", "content", "want"), [("none.h5", None, "cannot read"), ("text.txt", b"hello", "no store recognises")])
def test_what_cannot_be_read_is_an_error(run, tmp_path, name, content, want):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    got = run("inspect", tmp_path / name)
    assert got.exit_code == 1
    assert want in got.stderr


def test_a_damaged_file_is_an_error(run, files, tmp_path):
    whole = bytearray(files.adapters.read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "damaged.h5").write_bytes(whole)
    got = run("inspect", tmp_path / "damaged.h5")
    assert got.exit_code == 1
    assert "not as it was written" in got.stderr


def test_blocks_stand_in_the_order_of_their_numbers(run, tmp_path):
    record = {"method": "lora", "rank": 1, "alpha": 1.0, "scaling": 1.0, "shape": [2, 3]}
    names = [f"h.{number}.q" for number in (0, 1, 2, 10, 11)] + ["h.x.q"]
    tensors = {f"{name}.{key}": np.ones(shape, np.float32) for name in names for key, shape in (("lora_A", (2, 1)), ("lora_B", (1, 3)))}
    write_adapters(tmp_path / "a.h5", [AdapterState("a", {}, tensors, dict.fromkeys(names, record))], stores=default_registry().stores)
    got = json.loads(run("inspect", tmp_path / "a.h5", "--json").stdout)
    assert [module["name"] for module in got["adapters"][0]["modules"]] == ["h.x.q", "h.0.q", "h.1.q", "h.2.q", "h.10.q", "h.11.q"]
