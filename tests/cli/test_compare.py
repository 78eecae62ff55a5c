import json

import numpy as np
import pytest

from loratk.exchange import AdapterState, write_adapters
from loratk.plugins import default_registry


def state(name, seed=0, modules=("layers.0.q", "layers.1.q", "layers.1.v"), d=6, **changes):
    rng = np.random.default_rng(seed)
    tensors, records = {}, {}
    for module in modules:
        tensors |= {f"{module}.lora_A": rng.standard_normal((d, 2)), f"{module}.lora_B": rng.standard_normal((2, 4))}
        record = {"method": "lora", "layer_type": "linear", "shape": [d, 4], "rank": 2, "alpha": 4.0, "scaling": 2.0}
        records[module] = record | changes
    return AdapterState(name, {}, tensors, records)


@pytest.fixture
def write(tmp_path):
    stores = default_registry().stores

    def write(name, *states):
        write_adapters(tmp_path / name, states, stores=stores)
        return tmp_path / name

    write.base = lambda name, **arrays: stores["hdf5"].write(tmp_path / name, arrays, {}) or tmp_path / name
    return write


def test_the_report_of_two(run, write):
    got = run("compare", write("a.h5", state("one")), write("b.npz", state("two", 1)))
    assert got.exit_code == 0, got.stderr
    lines = got.stdout.splitlines()
    assert lines[0].split() == ["adapter", "layers", "|update|", "spikes", "zero", "intruders", "file"]
    assert "one and two" in lines
    assert "cosines of the whole updates" not in lines  # two have one cosine, which stands with the pair
    assert "energy by kind of layer" in lines
    assert "energy of two by layer" in lines
    assert "a.h5: read as loratk adapters" in got.stderr


def test_known_answers_are_shown(run, write):
    one, two = state("one"), state("two")
    two.tensors["layers.0.q.lora_B"] *= -1
    got = run("compare", write("a.h5", one), write("b.h5", two))
    rows = {line.split()[0]: line.split()[1:] for line in got.stdout.splitlines() if line.startswith("layers.")}
    text = " ".join(got.stdout.split())
    assert "layers.0.q -1 -100 % " in text
    assert "layers.1.v 1 +100 % " in text
    assert "100 % of the first's energy lies in the spaces of the second" in text
    assert rows


def test_three_have_a_matrix_and_top_cuts_tables(run, write):
    files = [write(f"{name}.h5", state(name, seed)) for seed, name in enumerate("abc")]
    got = run("compare", *files, "--top", 1)
    assert "cosines of the whole updates" in got.stdout
    assert got.stdout.count("... and 2 more (--top)") == 6  # three pairs, three adapters
    assert run("compare", *files, "--top", 3).stdout.count("more (--top)") == 0


def test_json_has_everything(run, write):
    files = write("a.h5", state("one")), write("b.h5", state("two", 1, modules=("layers.0.q", "x")))
    found = json.loads(run("compare", *files, "--json").stdout)
    (pair,) = found["pairs"]
    assert pair.keys() == {"a", "b", "sum", "shares", "sign_conflicts", "sign_error", "modules", "only_a", "only_b"}
    assert (pair["only_a"], pair["only_b"]) == (["layers.1.q", "layers.1.v"], ["x"])
    (module,) = pair["modules"]
    assert module["signs"]["exact"] is True
    assert module["inputs"].keys() == {"dimensions", "angles", "phi", "similarity", "shares"}
    assert found["cosines"] == [[1.0, pair["sum"]["cosine"]], [pair["sum"]["cosine"], 1.0]]
    assert sum(found["adapters"][0]["kinds"].values()) == pytest.approx(1)
    assert found["adapters"][0]["intruders"] is None


def test_what_is_in_one_only_or_cannot_be_compared_is_named(run, write):
    got = run("compare", write("a.h5", state("one")), write("b.h5", state("two", modules=("layers.0.q", "layers.1.q"), d=5)))
    assert got.exit_code == 0
    assert "in one only: layers.1.v" in got.stdout
    assert "layers.0.q: shape [6, 4] and [5, 4]" in got.stdout
    assert "no module can be compared; --rename" in got.stdout


def test_a_dry_run_lists_and_does_nothing(run, write, tmp_path):
    files = write("a.h5", state("one")), write("b.h5", state("two", modules=("layers.0.q",)))
    got = run("compare", *files, "--dry-run", "--plot", tmp_path / "p.png")
    assert got.exit_code == 0, got.stderr
    text = " ".join(got.stdout.split())
    assert f"adapter one, from {files[0]}: 3 modules" in got.stdout
    assert "one and two: 1 module would be compared" in text
    assert "in one only: layers.1.q, layers.1.v" in text
    assert f"{tmp_path / 'p.png'} would be drawn." in got.stdout
    assert "Intruders would not be looked for." in got.stdout
    assert not (tmp_path / "p.png").exists()
    found = json.loads(run("compare", *files, "--dry-run", "--json").stdout)
    assert found["pairs"][0]["modules"] == ["layers.0.q"]
    got = run("compare", files[0], write("c.h5", state("two", method="mystery")), "--dry-run")
    assert "one and two: 0 modules would be compared" in got.stdout
    assert "layers.0.q: two: its method 'mystery' is none that is installed" in got.stdout


def test_intruders_need_a_base(run, write):
    files = write("a.h5", state("one")), write("b.h5", state("two", 1))
    rng = np.random.default_rng(5)
    base = write.base("base.h5", **{f"{name}.weight": rng.standard_normal((6, 4)) for name in ("layers.0.q", "layers.1.q", "layers.1.v")})
    plain = json.loads(run("compare", *files, "--base", base, "--json", "--threshold", 1.0).stdout)
    assert all(layer["intruders"]["positions"] == [1, 2, 3, 4] for layer in plain["adapters"][0]["layers"])
    got = run("compare", *files, "--base", base, "--leading", 2, "--threshold", 1.0)
    assert "1, 2\n" in got.stdout
    assert got.stderr.count("taken input first") == 1
    got = run("compare", *files, "--base", base, "--no-intruders", "--json")
    assert json.loads(got.stdout)["adapters"][0]["intruders"] is None
    assert "Intruders would not be looked for" in run("compare", *files, "--base", base, "--no-intruders", "--dry-run").stdout
    assert "Intruders would be looked for." in run("compare", *files, "--base", base, "--dry-run").stdout
    assert run("compare", *files, "--no-intruders").exit_code == 2
    assert run("compare", *files, "--base-order", "input-first").exit_code == 2
    assert run("compare", *files, "--threshold", 0).exit_code == 2


def test_the_picture(run, write, tmp_path):
    many = tuple(f"layers.{block}.{kind}" for block in range(30) for kind in "qv")
    files = [write(f"{name}.h5", state(name, seed, modules=many)) for seed, name in enumerate("abc")]
    for end, head in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        got = run("compare", *files, "--plot", tmp_path / f"p.{end}")
        assert got.exit_code == 0, got.stderr
        assert f"Drew {tmp_path / f'p.{end}'}." in got.stderr
        assert (tmp_path / f"p.{end}").read_bytes().startswith(head)
    long = write(f"{'n' * 200}.h5", state("a", modules=("layer" * 60,)))
    assert run("compare", long, long, "--plot", tmp_path / "long.png").exit_code == 0
    got = run("compare", *files, "--plot", tmp_path / "p.xyz")
    assert (got.exit_code, got.stdout) == (1, "")
    assert "the suffix must be one of" in got.stderr
    zero = write("z.h5", state("z", method="mystery", modules=("a",)))
    got = run("compare", zero, zero, "--plot", tmp_path / "z.png")
    assert got.exit_code == 1
    assert "no update could be measured, so there is nothing to draw" in got.stderr


def test_one_adapter_alone_is_an_error(run, write):
    got = run("compare", write("a.h5", state("one")))
    assert got.exit_code == 1
    assert "a comparison needs at least two adapters, found 'one'" in got.stderr
    assert run("compare").exit_code == 2


def test_names_of_files_cannot_steer_the_terminal(run, write):
    files = [write(f"{name}.h5", state(name, modules=("layers.0.\x1b[31mq",))) for name in "ab"]
    got = run("compare", *files)
    assert "\x1b[31m" not in got.stdout + got.stderr
