import json

import numpy as np
import pytest

from loratk.exchange import AdapterState, load_adapter, save_adapter


@pytest.fixture
def source(tmp_path):
    """A PEFT folder of two layers of rank 4 with the singular values 8, 4, 2, 1 in each."""
    rng, tensors, modules = np.random.default_rng(0), {}, {}
    for name in ("q_proj", "v_proj"):
        u, v = (np.linalg.qr(rng.standard_normal((size, 4)))[0] for size in (12, 10))
        tensors |= {f"{name}.lora_A": (u * [8, 4, 2, 1]).astype(np.float32), f"{name}.lora_B": (v.T / 2).astype(np.float32)}
        modules[name] = {"method": "lora", "layer_type": "linear", "shape": [12, 10], "rank": 4, "alpha": 8.0, "scaling": 2.0}
    save_adapter(tmp_path / "source", AdapterState("default", {}, tensors, modules), format="peft")
    return tmp_path / "source"


def ranks(path):
    return {name: record["rank"] for name, record in load_adapter(path).states[0].modules.items()}


def test_it_shows_what_became_of_each_layer_and_writes_the_file(run, source, tmp_path):
    done = run("resize", source, tmp_path / "small", "--error", "0.3")
    assert done.exit_code == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["adapter", "'default'"]
    assert lines[1] == ["layer", "rank", "now", "error", "energy", "kept", "|update|"]
    assert lines[2] == ["q_proj", "4", "2", "24.25%", "94.12%", "9.22"]
    assert done.stdout.splitlines()[-1] == "All layers together: error 24.25%, energy kept 94.12%."
    assert f"Wrote default to {tmp_path / 'small'}." in done.stderr
    assert ranks(tmp_path / "small") == {"q_proj": 2, "v_proj": 2}


def test_patterns_have_rules_of_their_own(run, source, tmp_path):
    out = tmp_path / "out.h5"
    assert run("resize", source, out, "--rank", 3, "--for", "q_proj=ratio:0.4,rank:5").exit_code == 0
    assert ranks(out) == {"q_proj": 2, "v_proj": 3}
    assert run("resize", source, out, "--force", "--for", "v_*=rank:6", "--for", "q_proj=keep", "--grow").exit_code == 0
    assert ranks(out) == {"q_proj": 4, "v_proj": 6}


def test_json_and_a_dry_run(run, source):
    done = run("resize", source, "--energy", "0.9", "--dry-run", "--json")
    told = json.loads(done.stdout)
    entry = told["adapters"][0]["modules"]["q_proj"]
    assert (entry["rank_before"], entry["rank"]) == (4, 2)
    assert entry["energy"] == pytest.approx(80 / 85, rel=1e-6)
    assert sorted(path.name for path in source.parent.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ((), 2, "Missing argument 'DST'"),
        (("out.h5",), 1, "resizing needs a rule"),
        (("out.h5", "--rank", "0"), 2, "0 is not in the range"),
        (("out.h5", "--energy", "2"), 1, "energy must be a number above 0, up to 1, found 2.0"),
        (("out.h5", "--for", "q_proj"), 2, "--for takes PATTERN=RULE:VALUE"),
        (("out.h5", "--for", "q_proj=size:3"), 2, "a rule is rank:VALUE, ratio:VALUE, energy:VALUE, error:VALUE or keep, found 'size:3'"),
        (("out.h5", "--for", "q_proj=rank:x"), 2, "rank needs a whole number, found 'x'"),
        (("out.h5", "--for", "q_proj=energy:x"), 2, "energy needs a number, found 'x'"),
        (("out.h5", "--for", "q_proj=rank:1", "--for", "q_proj=rank:2"), 2, "--for is given twice for 'q_proj'"),
        (("out.h5", "--for", "q_proj=rank:1,rank:2"), 2, "rank is there twice"),
        (("out.h5", "--for", "w=rank:1"), 1, "'w' matches no module"),
        (("--rank", "1", "--dry-run", "--force", "--to", "peft"), 2, "--to, --force would have no effect without DST"),
        (("out.h5", "--rank", "2", "-O", "nothing=1"), 1, "No format here has the option 'nothing'"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(run, source, monkeypatch, tmp_path, args, code, said):
    monkeypatch.chdir(tmp_path)
    done = run("resize", source, *args)
    assert (done.exit_code, said in " ".join(done.stderr.split())) == (code, True), done.stderr
    assert not (tmp_path / "out.h5").exists()
