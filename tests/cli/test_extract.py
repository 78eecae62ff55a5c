import json

import numpy as np
import pytest

from loratk.exchange import load_adapter
from loratk.io import write_safetensors


@pytest.fixture
def checkpoints(tmp_path):
    """Two checkpoints: one weight differs by singular values 4 and 2, a norm by 1 everywhere, a third not at all."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((size, 2)))[0] for size in (12, 10))
    base = {"a.q.weight": rng.standard_normal((12, 10)), "a.v.weight": rng.standard_normal((12, 10)), "norm.weight": np.ones(10)}
    tuned = base | {"a.q.weight": base["a.q.weight"] + u * [4, 2] @ v.T, "norm.weight": np.full(10, 2.0)}
    for name, arrays in (("base", base), ("tuned", tuned)):
        write_safetensors(tmp_path / f"{name}.safetensors", {key: array.astype(np.float32) for key, array in arrays.items()}, {})
    return tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"


def test_it_shows_what_each_layer_is_kept_as_and_writes_the_file(run, checkpoints, tmp_path):
    done = run("extract", *checkpoints, tmp_path / "out.h5", "--energy", "0.75", "--max-rank", 8)
    assert done.exit_code == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[1] == ["a.q", "lora", "1", "44.72%", "80.00%", "4.472"]
    assert lines[2] == ["norm", "full", "-", "0.00%", "100.00%", "3.162"]
    assert done.stdout.splitlines()[-1] == "2 layers together: error 36.51%, energy kept 86.67%; 1 are the same in both."
    assert f"Wrote default to {tmp_path / 'out.h5'}." in done.stderr
    assert set(load_adapter(tmp_path / "out.h5").states[0].modules) == {"a.q", "norm"}


def test_json_and_a_dry_run(run, checkpoints, tmp_path):
    done = run("extract", *checkpoints, "--rank", 1, "--for", "q=rank:2", "--exclude", "norm", "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert told["modules"]["a.q"]["rank"] == 2
    assert told["modules"]["a.q"]["method"] == "lora"
    assert told["error"] < 1e-5
    assert told["unchanged"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "tuned.safetensors"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ((), 2, "Missing argument 'DST'"),
        (("out.h5",), 1, "extracting needs a rule"),
        (("--rank", "1", "--dry-run", "-O", "a=b"), 2, "--option would have no effect without DST"),
        (("out.h5", "--rank", "1", "--for", "q=keep"), 2, "a rule is rank:VALUE, ratio:VALUE, energy:VALUE, error:VALUE, found 'keep'"),
        (("out.h5", "--rank", "1", "--full", "w"), 1, "'w' matches no module"),
        (("out.safetensors", "--rank", "1"), 1, "cannot choose how to write"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(run, checkpoints, monkeypatch, tmp_path, args, code, said):
    monkeypatch.chdir(tmp_path)
    done = run("extract", *checkpoints, *args)
    assert (done.exit_code, said in " ".join(done.stderr.split())) == (code, True), done.stderr
    assert not (tmp_path / "out.h5").exists()
