import json

import numpy as np
import pytest

from loratk.exchange import AdapterState, save_adapter
from loratk.io import write_safetensors

RECORD = {"method": "lora", "rank": 1, "alpha": 1.0, "scaling": 1.0, "shape": [3, 2]}


@pytest.fixture
def place(run, tmp_path, monkeypatch):
    """A folder with a base and a checkpoint that two adapters were merged into, one after the other, with residuals."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_safetensors("base.safetensors", {"a.weight": rng.standard_normal((2, 3)).astype(np.float32)}, {}, ["a.weight"])
    for name in ("one", "two"):
        tensors = {"a.lora_A": rng.standard_normal((3, 1)), "a.lora_B": rng.standard_normal((1, 2))}
        save_adapter(f"{name}.h5", AdapterState(name, {}, tensors, {"a": RECORD}))
    run("merge", "base.safetensors", "one.h5", "-o", "m1.safetensors", "--keep-residual", "r1.npz")
    run("merge", "m1.safetensors", "two.h5", "-o", "m2.safetensors", "--keep-residual", "r2.npz")
    return tmp_path


@pytest.mark.parametrize(
    ("more", "like", "said"),
    [
        (["--base", "base.safetensors"], "base.safetensors", "Taken out: one, two. Left in it: nothing."),
        (["--base", "m1.safetensors"], "m1.safetensors", "Taken out: two. Left in it: one."),
        (["--residual", "r2.npz"], "m1.safetensors", "Taken out: two. Left in it: one."),
        (["--residual", "r2.npz", "--adapter", "two"], "m1.safetensors", "Taken out: two. Left in it: one."),
        (["--residual", "r1.npz", "--residual", "r2.npz"], "base.safetensors", "Taken out: one, two. Left in it: nothing."),
    ],
)
def test_the_bits_come_back(run, place, more, like, said):
    got = run("unmerge", "m2.safetensors", "-o", "out.safetensors", *more)
    assert got.exit_code == 0, got.stderr
    assert got.stdout.strip() == said
    assert got.stderr.strip() == "Wrote 1 arrays, bit for bit as they were before, to out.safetensors."
    assert (place / "out.safetensors").read_bytes() == (place / like).read_bytes()
    record = json.loads(run("unmerge", "m2.safetensors", "-o", "out.safetensors", *more, "--json", "--force").stdout)
    assert record["written"]
    assert [adapter["name"] for adapter in record["adapters"]] == said.split("out: ")[1].split(".")[0].split(", ")


def test_a_dry_run_checks_the_base_and_writes_nothing(run, place):
    got = run("unmerge", "m2.safetensors", "-o", "out.safetensors", "--base", "m1.safetensors", "--dry-run")
    assert (got.exit_code, got.stdout.strip()) == (0, "Would be taken out: two. Left in it: one.")
    got = run("unmerge", "m1.safetensors", "-o", "out.safetensors", "--base", "m2.safetensors", "--dry-run")
    assert got.exit_code == 1
    assert "is not what was merged into" in got.stderr
    got = run("unmerge", "m2.safetensors", "-o", "out.safetensors", "--residual", "r2.npz", "--dry-run", "--json")
    assert json.loads(got.stdout)["written"] is False
    assert not (place / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "want"),
    [
        (["m2.safetensors", "-o", "out.safetensors"], 2, "Give either --base"),
        (["m2.safetensors", "-o", "out.safetensors", "--base", "base.safetensors", "--residual", "r1.npz"], 2, "Give either --base"),
        (["m2.safetensors", "--base", "base.safetensors"], 2, "Missing option '-o'"),
        (["m2.safetensors", "-o", "out.safetensors", "--residual", "r1.npz"], 1, "merge 2 of 2, of 'two', has to be undone too"),
        (["m2.safetensors", "-o", "out.safetensors", "--base", "base.safetensors", "--adapter", "one"], 1, "cannot be taken out alone"),
        (["base.safetensors", "-o", "out.safetensors", "--base", "base.safetensors"], 1, "has no ledger of merges"),
        (["m2.safetensors", "-o", "m1.safetensors", "--base", "base.safetensors"], 1, "is there already"),
        (["m2.safetensors", "-o", "out.npz", "--residual", "r2.npz"], 1, "only safetensors has bfloat16"),
    ],
)
def test_what_cannot_be_done_says_why(run, place, arguments, code, want):
    before = sorted(path.name for path in place.iterdir())
    got = run("unmerge", *arguments)
    assert got.exit_code == code
    assert want in " ".join(got.stderr.split())
    assert sorted(path.name for path in place.iterdir()) == before
