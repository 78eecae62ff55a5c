"""`combine`: what it writes, shows and refuses."""

import json

import numpy as np
import pytest

from loratk.exchange import AdapterState, load_adapter, write_adapters
from loratk.exchange.factors import dense_update
from loratk.plugins import default_registry


def adapter(name="mine", modules=("0", "1"), scaling=2.0, seed=0, **more):
    rng = np.random.default_rng(seed)
    tensors, records = {}, {}
    for module in modules:
        tensors |= {f"{module}.lora_A": rng.standard_normal((12, 2)), f"{module}.lora_B": rng.standard_normal((2, 9))}
        records[module] = {"method": "lora", "layer_type": "linear", "shape": [12, 9], "rank": 2, "alpha": 2 * scaling, "scaling": scaling}
    return AdapterState(name, {}, tensors, records, **more)


def update(state, module):
    return dense_update(state.modules[module], state.parameters()[module])


def read(path):
    (state,) = load_adapter(path).states
    return state


@pytest.fixture
def folder(tmp_path):
    """Files a.h5 with `a`, b.h5 with `b`, and both.npz with both."""
    both = adapter("a"), adapter("b", ("1", "2"), 0.5, seed=1)
    for name, states in (("a.h5", both[:1]), ("b.h5", both[1:]), ("both.npz", both)):
        write_adapters(tmp_path / name, states, stores=default_registry().stores)
    return tmp_path


def test_the_weighted_sum_of_two_files(run, folder):
    out = folder / "out.safetensors"
    got = run("combine", f"{folder / 'a.h5'}:0.5", f"{folder / 'b.h5'}:-2e0", "-o", out, "--to", "safetensors")
    assert got.exit_code == 0, got.output
    state = read(out)
    want = 0.5 * update(adapter("a"), "1") - 2 * update(adapter("b", ("1", "2"), 0.5, seed=1), "1")
    np.testing.assert_allclose(update(state, "1"), want, rtol=1e-12, atol=1e-12)
    assert (state.name, state.modules["1"]["rank"], state.modules["0"]["rank"]) == ("combined", 4, 2)
    assert f"Wrote combined to {out}." in got.stderr
    assert f"{folder / 'a.h5'}: read as" in got.stderr
    rows = [line.split() for line in got.stdout.splitlines()]
    assert rows[1][:5] == ["0", "2", "0.00%", "100.00%", "0.00%"]
    assert "All layers together: error 0.00% against what the rule exactly gives, energy kept 100.00%, 0.00% off" in got.stdout


def test_json_has_both_certificates(run, folder):
    out = folder / "out.h5"
    got = run("combine", folder / "a.h5", folder / "b.h5", "-o", out, "--rule", "ties", "-R", "density=0.4", "--rank", 2, "--name", "new",
              "--json")  # fmt: skip
    report = json.loads(got.stdout)
    assert (report["name"], report["rule"], report["options"]) == ("new", "ties", {"density": "0.4"})
    assert report["adapters"][1] == {"path": str(folder / "b.h5"), "name": "b", "weight": 1.0}
    entry, other = report["certificate"]["modules"]["1"], report["against_sum"]["modules"]["1"]
    assert (entry["rank"], list(report["certificate"]["modules"])) == (2, ["0", "1", "2"])
    got, total = update(read(out), "1"), update(adapter("a"), "1") + update(adapter("b", ("1", "2"), 0.5, seed=1), "1")
    assert other["error"] == pytest.approx(np.linalg.norm(got - total) / np.linalg.norm(total))
    assert 0 < entry["error"] < 1
    assert "new" in read(out).name


def test_a_dry_run_shows_the_same_and_writes_nothing(run, folder):
    args = ["combine", folder / "a.h5", folder / "b.h5", "--rule", "dare", "--seed", 5]
    dry, wet = run(*args, "--dry-run", "-o", folder / "out.h5"), run(*args, "-o", folder / "out.h5")
    assert dry.exit_code == wet.exit_code == 0
    assert dry.stdout == wet.stdout == run(*args, "--dry-run").stdout
    assert sorted(path.name for path in folder.iterdir()) == ["a.h5", "b.h5", "both.npz", "out.h5"]
    assert "Wrote" not in dry.stderr
    again = run(*args, "--dry-run", "--seed", 6)
    assert again.stdout != dry.stdout


def test_a_dry_run_tells_what_the_format_cannot_hold(run, folder):
    args = ["combine", folder / "a.h5", folder / "b.h5", "--dense", "-o", folder / "out.gguf", "--dry-run"]
    got = run(*args)
    assert got.exit_code == 1
    assert "cannot hold all of it" in got.stderr


def test_several_adapters_in_a_file_and_one_by_name(run, folder):
    out = folder / "out.h5"
    assert run("combine", f"{folder / 'both.npz'}:2", "-o", out).exit_code == 0
    np.testing.assert_allclose(update(read(out), "0"), 2 * update(adapter("a"), "0"))
    assert sorted(read(out).modules) == ["0", "1", "2"]
    assert run("combine", f"{folder / 'both.npz'}#b:0.5", "-o", out, "--force").exit_code == 0
    assert sorted(read(out).modules) == ["1", "2"]
    np.testing.assert_allclose(update(read(out), "2"), 0.5 * update(adapter("b", ("1", "2"), 0.5, seed=1), "2"))


def test_a_file_whose_name_looks_like_a_weight_is_a_file(run, folder):
    (folder / "c:2").write_bytes((folder / "a.h5").read_bytes())
    assert run("combine", folder / "c:2", "-o", folder / "out.h5").exit_code == 0
    np.testing.assert_allclose(update(read(folder / "out.h5"), "0"), update(adapter("a"), "0"))
    assert run("combine", f"{folder / 'c:2'}:3", "-o", folder / "out.h5", "--force").exit_code == 0
    np.testing.assert_allclose(update(read(folder / "out.h5"), "0"), 3 * update(adapter("a"), "0"))


def test_weights_of_layers(run, folder):
    out, a, b = folder / "out.h5", folder / "a.h5", folder / "b.h5"
    assert run("combine", a, f"{b}:2", "-o", out, "--weight", "1=0.5,0", "--weight", "*=3").exit_code == 0
    np.testing.assert_allclose(update(read(out), "1"), 0.5 * update(adapter("a"), "1"))
    np.testing.assert_allclose(update(read(out), "2"), 6 * update(adapter("b", ("1", "2"), 0.5, seed=1), "2"))


def test_selecting_and_renaming_modules(run, folder):
    args = ["combine", folder / "a.h5", folder / "b.h5", "-o", folder / "out.h5"]
    assert run(*args, "--rename", "2=0", "--select", "0").exit_code == 0
    state = read(folder / "out.h5")
    want = update(adapter("a"), "0") + update(adapter("b", ("1", "2"), 0.5, seed=1), "2")
    assert list(state.modules) == ["0"]
    np.testing.assert_allclose(update(state, "0"), want)


@pytest.mark.parametrize(
    ("args", "code", "want"),
    [
        (["a.h5", "b.h5"], 2, "Missing option '-o'; without it only --dry-run makes sense"),
        (["a.h5", "--dry-run", "--to", "peft"], 2, "--to would have no effect without -o"),
        (["a.h5", "-o", "b.h5"], 1, "'{b.h5}' is there already and was left as it is"),
        (["a.h5:1e", "-o", "x.h5"], 2, "must be a finite number, found '1e'"),
        (["a.h5:1.2.3", "-o", "x.h5"], 2, "must be a finite number, found '1.2.3'"),
        (["a.h5#c", "-o", "x.h5"], 1, "holds no adapter named 'c'; it holds 'a'"),
        (["a.h5", "-o", "x.h5", "--rule", "tiez"], 1, "Unknown merge rule 'tiez'"),
        (["a.h5", "-o", "x.h5", "-R", "density=1"], 1, "'sum' cannot work with these options: - there is no option 'density'"),
        (["a.h5", "-o", "x.h5", "--weight", "9=1"], 1, "'9' matches no module"),
        (["a.h5", "-o", "x.h5", "--weight", "1"], 2, "--weight takes PATTERN=W or PATTERN=W,W,..., such as q_proj=0.5, found '1'"),
        (["a.h5", "-o", "x.h5", "--weight", "1=a"], 2, "--weight: '1' needs numbers, found 'a'"),
        (["a.h5", "-o", "x.h5", "--weight", "1=1", "--weight", "1=2"], 2, "--weight is given twice for '1'"),
        (["a.h5", "-o", "x.h5", "--weight", "1=1,2"], 1, "'1' needs one finite number, or one for each of 1 adapters"),
        (["a.h5", "-o", "x.h5", "--energy", "2"], 1, "energy must be a number above 0, up to 1"),
        (["a.h5", "-o", "x.h5", "--dense", "--rank", "2"], 1, "what stays dense has no rank"),
        (["a.h5", "-o", "x.h5", "--base-order", "input-first"], 2, "--base-order is for --base"),
        (["a.h5", "-o", "x.h5", "--option", "to:y=1"], 1, "No format here has the option 'to:y'"),
        (["a.h5", "-o", "x.h5", "--select", "q*"], 1, "'q*' matches no module"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_errors(run, folder, args, code, want):
    files = {name: str(folder / name) for name in ("a.h5", "b.h5", "x.h5")}
    filled = []
    for arg in args:
        head = next((name for name in files if arg.startswith(name)), "")
        filled.append(files[head] + arg[len(head) :] if head else arg)
    got = run("combine", *filled)
    assert got.exit_code == code, got.output
    for name, path in files.items():
        want = want.replace(f"{{{name}}}", path)
    assert want in " ".join(got.stderr.split())
    assert not (folder / "x.h5").exists()


def test_adapters_of_one_name_are_told_apart_by_their_files(run, folder):
    bad = adapter("a", ("1",))
    bad = AdapterState("a", {}, {key: array[:, :1] if key.endswith("A") else array[:1, :5] for key, array in bad.tensors.items()},
                       {"1": bad.modules["1"] | {"rank": 1, "alpha": 2.0, "shape": [12, 5]}})  # fmt: skip
    write_adapters(folder / "c.h5", [bad], stores=default_registry().stores)
    got = run("combine", folder / "a.h5", folder / "c.h5", "-o", folder / "x.h5")
    assert got.exit_code == 1
    text = " ".join(got.stderr.split())
    assert "module '1': weights that act as 12x9 and 12x5" in text
    assert "('a', 'c')" in text


def test_adapters_for_different_bases(run, folder):
    write_adapters(folder / "c.h5", [adapter("c", fingerprint="1" * 64)], stores=default_registry().stores)
    write_adapters(folder / "d.h5", [adapter("d", fingerprint="2" * 64)], stores=default_registry().stores)
    got = run("combine", folder / "c.h5", folder / "d.h5", "-o", folder / "x.h5")
    assert got.exit_code == 1
    assert "were made for different bases: 'c' for 111111111111..., 'd' for 222222222222..." in got.stderr
    assert "--any-base" in got.stderr
    assert run("combine", folder / "c.h5", folder / "d.h5", "-o", folder / "x.h5", "--any-base").exit_code == 0
    assert read(folder / "x.h5").fingerprint == ""


def test_dora_with_its_base(run, files):
    args = ["combine", f"{files.adapters}#two", "-o", files.folder / "from-dora.h5", "--rank", 3]
    got = run(*args)
    assert got.exit_code == 1
    assert "adapter 'two', module '2': it depends on the base's weight; give the base (--base)" in got.stderr
    assert run(*args, "--base", files.base).exit_code == 0
    assert read(files.folder / "from-dora.h5").modules["2"]["method"] == "lora"
