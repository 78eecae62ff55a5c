import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from loratk.exchange import AdapterState, save_adapter
from loratk.io import open_safetensors, write_safetensors

RECORD = {"method": "lora", "rank": 1, "alpha": 1.0, "scaling": 1.0, "shape": [3, 2]}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a base in bfloat16 and two adapters."""
    monkeypatch.chdir(tmp_path)
    base = {"a.weight": np.ones((2, 3), np.float32), "b.weight": np.ones((2, 3), np.float32), "c": np.zeros(4, np.float32)}
    write_safetensors("base.safetensors", base, {}, ["a.weight", "b.weight"])
    for name, size, modules in (("one", 1.0, "ab"), ("two", 0.001, "a")):
        tensors = {f"{module}.lora_A": np.full((3, 1), size) for module in modules}
        tensors |= {f"{module}.lora_B": np.ones((1, 2)) for module in modules}
        save_adapter(f"{name}.h5", AdapterState(name, {}, tensors, dict.fromkeys(modules, RECORD)))
    return tmp_path


def weights(path):
    with open_safetensors(path) as reader:
        return {name: reader.array(name) for name in reader.names()}


def test_adapters_with_weights(run, place):
    got = run("merge", "base.safetensors", "one.h5:-0.5", "two.h5:1000", "-o", "out.safetensors")
    assert got.exit_code == 0, got.stderr
    assert "2 of 3 arrays changed" in got.stdout
    assert got.stderr.splitlines()[-1] == "Wrote base.safetensors with one (times -0.5), two (times 1000) merged to out.safetensors."
    assert (weights("out.safetensors")["a.weight"] == 1.5).all()
    assert (weights("out.safetensors")["b.weight"] == 0.5).all()


def test_what_rounding_takes_is_a_table(run, place):
    got = run("merge", "base.safetensors", "two.h5", "-o", "out.safetensors")
    lines = got.stdout.splitlines()
    assert lines[1].split() == ["array", "dtype", "|update|", "unchanged", "norm", "lost"]
    assert lines[2].split() == ["a.weight", "BF16", "0.002449", "100.0%", "100.00%"]
    assert lines[3] == "All together: 100.0% of the weights with an update did not change, 100.00% of its norm is lost."
    assert "100.0 % of the numbers in changed arrays are as before" in got.stderr
    got = run("merge", "base.safetensors", "two.h5", "-o", "wide.safetensors", "--dtype", "float32")
    assert "rounding" not in got.stdout
    assert np.allclose(weights("wide.safetensors")["a.weight"], 1.001)


def test_json_has_everything(run, place):
    got = run("merge", "base.safetensors", "one.h5", "-o", "out.safetensors", "--keep-residual", "yes", "--json")
    record = json.loads(got.stdout)
    assert (record["path"], record["written"], record["residual"]) == ("out.safetensors", True, "out.safetensors.residual.npz")
    assert record["residual_size"] == (place / "out.safetensors.residual.npz").stat().st_size
    assert [adapter["name"] for adapter in record["adapters"]] == ["one"]
    assert record["rounding"] == {"moved": 12, "kept": 0, "update": 12**0.5, "lost": 0.0, "kept_share": 0.0, "lost_share": 0.0}
    first = record["changed"][0]
    assert (first["name"], first["dtype"], first["shape"]) == ("a.weight", "BF16", [2, 3])


@pytest.mark.parametrize("as_json", [False, True])
def test_a_dry_run(run, place, as_json):
    more = ["--json"] if as_json else []
    got = run("merge", "base.safetensors", "one.h5", "-o", "out.safetensors", "--dry-run", *more)
    assert got.exit_code == 0
    if as_json:
        assert json.loads(got.stdout)["written"] is False
    else:
        assert got.stdout.splitlines()[0] == "2 of 3 arrays would change, 40 bytes in all."
        assert got.stdout.splitlines()[2].split() == ["a.weight", "BF16", "2", "x", "3"]
    got = run("merge", "base.safetensors", "one.h5", "-o", "out.safetensors", "--dry-run", "--rename", "a=x", *more)
    assert got.exit_code == 1
    assert "the base has no array 'x.weight'" in got.stdout
    assert not (place / "out.safetensors").exists()


def test_stochastic_rounding_by_seed(run, place):
    for name, more in {"a": [], "b": ["--seed", "0"], "c": ["--seed", "5"]}.items():
        assert run("merge", "base.safetensors", "two.h5:3", "-o", f"{name}.safetensors", "--stochastic-rounding", *more).exit_code == 0
    one, two, three = ((place / f"{name}.safetensors").read_bytes() for name in "abc")
    assert one == two != three
    got = run("merge", "base.safetensors", "two.h5:3", "-o", "d.safetensors", "--stochastic-rounding")
    assert got.stdout.splitlines()[1].split()[-1] == "noise"
    assert "of its norm is added, which is 0 on average." in got.stdout
    assert "as before" not in got.stderr


def test_notes_tell_of_which_file_they_are_and_come_once(run, place):
    for more in (["--dry-run"], []):
        got = run("merge", "base.safetensors", "one.h5", "two.h5", "-o", "out.safetensors", *more)
        lines = got.stderr.splitlines()
        assert [line.split(":")[0] for line in lines[:3]] == ["- one.h5", "- the base's weights are taken output first", "- two.h5"]
        assert len(lines) == len(set(lines))


def test_twice_is_refused_and_again_allowed(run, place):
    run("merge", "base.safetensors", "one.h5", "-o", "one.safetensors")
    got = run("merge", "one.safetensors", "one.h5:0.5", "-o", "two.safetensors")
    assert got.exit_code == 1
    assert "Merging twice would add the same update again" in got.stderr
    assert "(--again NAME)" in got.stderr
    assert run("merge", "one.safetensors", "one.h5:0.5", "-o", "two.safetensors", "--again", "one").exit_code == 0
    assert (weights("two.safetensors")["a.weight"] == 2.5).all()
    assert run("merge", "one.safetensors", "one.h5", "-o", "new.safetensors", "--new-ledger").exit_code == 0


def test_other_options(run, place):
    tensors = {"x.lora_A": np.ones((3, 1)), "x.lora_B": np.ones((1, 2))}
    save_adapter("both.h5", [AdapterState(name, {}, tensors, {"x": RECORD}) for name in "pq"])
    got = run("merge", "base.safetensors", "both.h5", "-o", "out.bin", "--to", "npz", "--adapter", "q", "--rename", "x=b", "--select", "b",
              "--option", "to:compression=9", "--base-order", "output-first")  # fmt: skip
    assert got.exit_code == 0, got.stderr
    assert "with q merged" in got.stderr
    with np.load("out.bin") as held:
        assert (held["b.weight"] == 2).all()
        assert (held["a.weight"] == 1).all()


@pytest.mark.parametrize(
    ("arguments", "code", "want"),
    [
        (["base.safetensors", "-o", "out.safetensors"], 2, "Missing argument 'ADAPTER[:WEIGHT]...'"),
        (["base.safetensors", "one.h5"], 2, "Missing option '-o'"),
        (["base.safetensors", "one.h5", "-o", "out.safetensors", "--seed", "1"], 2, "--seed is for --stochastic-rounding"),
        (["base.safetensors", "one.h5", "-o", "out.xyz"], 1, "no store has its suffix '.xyz'"),
        (["base.safetensors", "one.h5:x", "-o", "out.safetensors"], 2, "'one.h5:x' must be a finite number, found 'x'"),
        (["base.safetensors", "one.h5:nan", "-o", "out.safetensors"], 2, "'one.h5:nan' must be a finite number, found 'nan'"),
        (["base.safetensors", "one.h5#a", "-o", "out.safetensors"], 2, "by --adapter NAME here, not by #NAME, found 'a'"),
        (["ghost.safetensors", "one.h5", "-o", "out.safetensors"], 1, "cannot read 'ghost.safetensors'"),
        (["base.safetensors", "one.h5", "-o", "out.npz", "--dtype", "bfloat16"], 1, "only safetensors has bfloat16"),
        (["base.safetensors", "one.h5", "-o", "out.safetensors", "--adapter", "x"], 1, "there is no adapter named 'x'; there are 'one'"),
        (["base.safetensors", "one.h5", "-o", "out.safetensors", "--option", "ghost=1"], 1, "No format here has the option 'ghost'"),
        (
            ["base.safetensors", "one.h5", "-o", "x.npz", "--keep-residual", "x.npz"],
            1,
            "the residual and the result cannot both be 'x.npz'",
        ),
        (["base.safetensors", "one.h5", "-o", "out.safetensors", "--again", "one"], 1, "leave it out (--again)"),
        (["one.h5", "one.h5", "-o", "out.safetensors"], 1, "is an adapter file, not the weights of a base model"),
    ],
)
def test_what_cannot_be_done_says_why(run, place, arguments, code, want):
    before = sorted(path.name for path in place.iterdir())
    got = run("merge", *arguments)
    assert got.exit_code == code
    assert want in " ".join(got.stderr.split())
    assert sorted(path.name for path in place.iterdir()) == before


def test_progress_is_for_terminals(run, place, monkeypatch):
    told = []
    counting = SimpleNamespace(update=lambda task, total, advance: told.append((total, advance)), add_task=lambda what, total: 0)

    class Progress:
        def __init__(self, **options):
            pass

        def __enter__(self):
            return counting

        def __exit__(self, *error):
            pass

    monkeypatch.setattr("rich.progress.Progress", Progress)
    monkeypatch.setattr("loratk.cli.show.sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True), stdout=sys.stdout))
    run("merge", "base.safetensors", "one.h5", "-o", "next.safetensors")
    assert told == [(3, 1)] * 3
