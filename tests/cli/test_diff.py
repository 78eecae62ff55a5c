import json

import numpy as np
import pytest

from loratk.exchange import AdapterState, save_adapter, write_adapters
from loratk.plugins import default_registry


def state(name="mine", modules=("0", "1"), scale=1.0, method="lora", seed=0, **changes):
    rng = np.random.default_rng(seed)
    tensors, records = {}, {}
    for module in modules:
        a, b = rng.standard_normal((6, 2)), rng.standard_normal((2, 4))
        tensors |= {f"{module}.lora_A": a, f"{module}.lora_B": b * scale}
        if method == "dora":
            tensors[f"{module}.magnitude"] = rng.random(4)
        record = {"method": method, "layer_type": "linear", "shape": [6, 4], "rank": 2, "alpha": 4.0, "scaling": 2.0}
        records[module] = record | changes
    return AdapterState(name, {}, tensors, records)


@pytest.fixture
def write(tmp_path):
    def write(name, *states):
        write_adapters(tmp_path / name, states, stores=default_registry().stores)
        return tmp_path / name

    return write


def test_the_same_file_is_the_same_bit_by_bit(run, files):
    got = run("diff", files.adapters, files.adapters)
    assert got.exit_code == 0
    assert got.stdout.splitlines() == [
        "adapter 'one'", "The same, bit by bit: 2 modules in both.", "adapter 'two'", "The same, bit by bit: 1 module in both.",
    ]  # fmt: skip
    assert "read as loratk adapters, hdf5" in got.stderr


def test_another_factoring_of_the_same_update_is_the_same(run, write):
    one = state()
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((2, 2)))[0]
    tensors = {key: array @ turn if key.endswith("A") else turn.T @ array / 2 for key, array in one.tensors.items()}
    modules = {module: record | {"alpha": 8.0, "scaling": 4.0} for module, record in one.modules.items()}
    two = AdapterState("turned", {}, tensors, modules)
    got = run("diff", write("a.h5", one), write("b.npz", two), "--all")
    assert got.exit_code == 0, got.stdout
    assert "adapters 'mine' and 'turned'" in got.stdout
    assert "The same within 1e-06: 2 modules in both" in got.stdout
    assert "(alpha 4.0 and 8.0); (scaling 2.0 and 4.0)" in got.stdout


def test_what_differs_is_listed_and_the_exit_code_is_3(run, write):
    two = state()
    two.tensors["1.lora_B"] = two.tensors["1.lora_B"] * 1.5
    got = run("diff", write("a.h5", state()), write("b.h5", two))
    assert got.exit_code == 3
    text = " ".join(got.stdout.split())
    assert "1 0.33 1 " in text
    assert "Different: 1 of 2 modules in both." in text
    assert "\n0 " not in got.stdout
    assert run("diff", write("a.h5", state()), write("b.h5", two), "--tolerance", "0.34").exit_code == 0


def test_modules_and_adapters_in_one_only(run, write):
    a = write("a.h5", state("x", ("0", "1")), state("y"))
    b = write("b.h5", state("x", ("0", "2")), state("z"))
    got = run("diff", a, b)
    assert got.exit_code == 3
    lines = got.stdout.splitlines()
    assert "1 is in A only" in lines
    assert "2 is in B only" in lines
    assert f"adapter 'y' is in {a} only" in lines
    assert f"adapter 'z' is in {b} only" in lines
    report = json.loads(run("diff", a, b, "--json").stdout)
    assert (report["same"], report["only_a"], report["only_b"]) == (False, ["y"], ["z"])
    assert (report["adapters"][0]["only_a"], report["adapters"][0]["only_b"]) == (["1"], ["2"])


def test_other_parameters_are_compared_one_by_one(run, write):
    one, two = state(method="dora"), state(method="dora")
    two.tensors["1.magnitude"] = two.tensors["1.magnitude"] * 1.25
    got = run("diff", write("a.h5", one), write("b.h5", two))
    assert got.exit_code == 3
    assert "magnitude 0.2" in got.stdout
    assert "Different: 1 of 2 modules in both." in got.stdout


def test_what_cannot_be_compared_is_different(run, write):
    got = run("diff", write("a.h5", state()), write("b.h5", state(method="dora")))
    assert got.exit_code == 3
    assert "method lora and dora; magnitude in the second only" in got.stdout
    (comparison,) = json.loads(run("diff", write("a.h5", state()), write("b.h5", state(method="dora")), "--json").stdout)["adapters"]
    assert [module["relative"] for module in comparison["modules"]] == [None, None]


def test_choosing_adapters_and_renaming_modules(run, write):
    a, b = write("a.h5", state("x", ("0", "1"))), write("b.h5", state("y", ("m.0", "m.1")), state("z", ("m.0", "m.1"), seed=5))
    assert run("diff", a, b, "--adapter-b", "y", "--rename", "0=m.0", "--rename", "1=m.1").exit_code == 0
    assert run("diff", a, b, "--adapter-b", "z", "--rename", "0=m.0", "--rename", "1=m.1").exit_code == 3


@pytest.mark.parametrize(
    ("args", "code", "want"),
    [
        (["{a}", "{two}"], 1, "no adapter has the same name in both: 'x', and 'y', 'z'; choose one of each (--adapter-a, --adapter-b)"),
        (["{a}", "{two}", "--adapter-b", "ghost"], 1, "holds no adapter named 'ghost'"),
        (["{a}", "ghost.h5"], 1, "cannot read 'ghost.h5'"),
        (["{a}", "{two}", "-O", "c:x=1"], 1, "No format here has the option 'c:x'"),
        (["{a}", "{two}", "--from-a", "ghost"], 1, "no format named 'ghost'"),
        (["{a}", "{two}", "--tolerance", "-1"], 2, "not in the range"),
        (["{a}", "{two}", "--rename", "x"], 2, "--rename takes two names"),
    ],
)
def test_errors(run, write, args, code, want):
    names = {"a": write("a.h5", state("x")), "two": write("b.h5", state("y"), state("z"))}
    got = run("diff", *(arg.format(**names) for arg in args))
    assert got.exit_code == code
    assert want in " ".join(got.stderr.split())


def test_adapters_without_a_common_path_are_told_what_gives_names(run, tmp_path):
    record = {"method": "lora", "rank": 1, "alpha": 1.0, "scaling": 1.0, "shape": [2, 3]}
    for name in ("p", "q"):
        tensors = {f"{name}.lora_A": np.ones((2, 1), np.float32), f"{name}.lora_B": np.ones((1, 3), np.float32)}
        save_adapter(tmp_path / f"{name}.h5", AdapterState("a", {}, tensors, {name: record}))
    got = run("diff", tmp_path / "p.h5", tmp_path / "q.h5")
    assert got.exit_code == 3
    assert "Different: none of 2 modules has a namesake in the other; --rename, --base or an option" in got.stdout
    assert run("diff", tmp_path / "p.h5", tmp_path / "q.h5", "--rename", "p=q").exit_code == 0
