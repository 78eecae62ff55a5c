import re
import sys

import h5py
import numpy as np
import pytest

import loratk.cli.demo
from loratk.demo import Demo, Proof, make_tasks
from loratk.errors import BackendError
from loratk.exchange import list_adapters
from loratk.plugins import default_registry


def accuracies(text):
    lines = re.findall(r"^(upright|sideways|mirrored) +([\d.-]+) +([\d.-]+) +([\d.-]+) +([\d.-]+)$", text, re.MULTILINE)
    return {name: [float(cell) if cell != "-" else None for cell in cells] for name, *cells in lines}


def test_the_base_knows_its_task_and_the_adapters_the_changed_ones(demo_run):
    assert demo_run.result.exit_code == 0, demo_run.result.output
    got = accuracies(demo_run.result.stdout)
    assert got["upright"][0] >= 95
    for task in ("sideways", "mirrored"):
        base, off, on, merged = got[task]
        assert base < 50
        assert off == base
        assert on >= 90
        assert merged == on


def test_all_proofs_hold_on_screen(demo_run):
    text = demo_run.result.stdout
    assert text.count("  holds  ") == 4
    assert "adapter off = base, bit for bit (0 of 13,470 outputs differ)" in text
    assert "saved and reloaded = in memory, bit for bit (0 of 8,980 outputs differ)" in text
    assert re.search(r"merged = adapted, to rounding \(largest difference \d\.\de-0\d", text)


def test_counts_and_the_efficiency_table(demo_run):
    text = " ".join(demo_run.result.stdout.split())
    assert "6,440 numbers beside 167,178 (3.9%)" in text
    assert "4 8,192 99.22% 0.0078 8 16,384 98.44% 0.0156 16 32,768 96.88% 0.0312 32 65,536 93.75% 0.0625 64 131,072 87.50% 0.1250" in text


def test_the_files(demo_run):
    assert {path.name for path in demo_run.out.iterdir()} >= {"base.h5", "adapters.h5"}
    assert list_adapters(demo_run.out / "adapters.h5", stores=default_registry().stores) == ["mirrored", "sideways"]
    with h5py.File(demo_run.out / "adapters.h5") as file:
        assert file["adapters/sideways/0/lora_A"].shape == (64, 4)


def test_the_lines_that_the_demo_suggests_work(run, demo_run, tmp_path):
    look, fold = re.findall(r": loratk (inspect .*|export .*)", demo_run.result.stdout)
    assert run(*look.split()).exit_code == 0
    assert run(*fold.replace("merged.npz", str(tmp_path / "merged.npz")).split()).exit_code == 0


def test_the_curves_are_drawn(demo_run):
    pytest.importorskip("matplotlib")
    assert (demo_run.out / "curves.png").read_bytes().startswith(b"\x89PNG")


class Quick:
    """A demonstration that has been trained already, without training."""

    def __init__(self, *args, **kwargs):
        self.asked = kwargs
        self.histories = {}
        self.own, *self.changed = make_tasks(0)
        self.proofs = [Proof("claim", True, "seen")]
        Quick.last = self

    def train_base(self):
        return 0.99

    def base_accuracy(self, name):
        return 0.1

    def train_adapter(self, name):
        return 0.9

    def counts(self):
        return 1000, 10

    def accuracies(self):
        return []

    def save(self, out):
        return out / "base.h5", out / "adapters.h5"

    def prove(self, base, adapters):
        return self.proofs


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("loratk.demo.Demo", Quick)
    monkeypatch.setattr("loratk.demo.draw", lambda *args: None)
    return Quick


def test_options_reach_the_demonstration(run, quick, tmp_path):
    assert run("--without", "conv", "demo", "--rank", 3, "--seed", 9, "--device", "reference", "--out", tmp_path).exit_code == 0
    asked = quick.last.asked
    assert (asked["rank"], asked["seed"], asked["backend"]) == (3, 9, "reference")
    assert "conv" not in asked["registry"].owners.values()


def test_quiet_prints_the_table_alone(run, quick, tmp_path):
    got = run("demo", "--quiet", "--out", tmp_path)
    assert got.stdout.splitlines() == ["task  base  adapter off  adapter on  merged"]
    assert got.stderr == ""


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_failed_proof_exits_1(run, quick, tmp_path, monkeypatch, quiet):
    monkeypatch.setattr(Quick, "prove", lambda *args: [Proof("good", True, ""), Proof("bad", False, "2 differ")])
    got = run("demo", "--out", tmp_path, *quiet)
    assert got.exit_code == 1
    assert got.stderr.endswith("Error: not so: bad (2 differ)\n")


def test_without_matplotlib_one_line_says_so(run, quick, tmp_path, monkeypatch):
    from loratk.demo.curves import draw

    monkeypatch.setattr("loratk.demo.draw", draw)
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    got = run("demo", "--out", tmp_path)
    assert got.exit_code == 0
    assert got.stderr.count("No picture of the training") == 1
    assert "curves.png" not in got.stdout


def test_a_rank_that_does_not_fit_is_one_line(run, tmp_path):
    got = run("demo", "--rank", 11, "--out", tmp_path / "out")
    assert got.exit_code == 2
    assert "11 is not in the range 1<=x<=10" in got.stderr
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_one_line(run, tmp_path, monkeypatch):
    def absent(name):
        raise BackendError("no GPU")

    monkeypatch.setattr("loratk.nn.module.get_backend", absent)
    got = run("demo", "--device", "cuda", "--out", tmp_path / "out")
    assert got.exit_code == 1
    assert got.stderr == "Error: no GPU\n"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_said_before_any_training(run, tmp_path):
    (tmp_path / "file").write_text("")
    got = run("demo", "--out", tmp_path / "file" / "out")
    assert got.exit_code == 1
    assert got.stderr.splitlines()[-1].startswith("Error: cannot make the folder")
    assert got.stdout == ""


@pytest.fixture
def small(monkeypatch):
    """Makes the demonstration small enough to train several times."""
    monkeypatch.setattr("loratk.demo.demo.SIZES", (64, 16, 10))
    monkeypatch.setattr("loratk.demo.demo.EPOCHS", 1)


def trained(seed):
    demo = Demo(seed=seed, backend="reference")
    demo.train_base()
    for task in demo.changed:
        demo.train_adapter(task.name)
    return demo


def test_the_seed_decides_everything(small):
    first, again, other = trained(5), trained(5), trained(6)
    assert first.accuracies() == again.accuracies()
    assert first.model.fingerprint() == again.model.fingerprint() != other.model.fingerprint()
    for name, array in first.model.state("mirrored").items():
        assert np.array_equal(array, again.model.state("mirrored")[name])


def test_proofs_fail_when_what_they_claim_is_broken(small, tmp_path):
    demo = trained(0)
    paths = demo.save(tmp_path)
    assert [proof.holds for proof in demo.prove(*paths)] == [True] * 4

    state = demo.model.state("sideways")
    demo.model.load_state({name: array + np.float32(1e-6) for name, array in state.items()}, "sideways")
    assert [proof.holds for proof in demo.prove(*paths)] == [True, True, False, True]
    demo.model.load_state(state, "sideways")

    weight = demo.model.base_parameters()["0.weight"]
    weight.assign(np.nextafter(weight.numpy(), np.float32(9)))
    off, _, _, unchanged = demo.prove(*paths)
    assert not off.holds
    assert not unchanged.holds


def test_a_merge_that_is_off_by_more_than_rounding_fails_the_proof(small, tmp_path, monkeypatch):
    demo = trained(0)
    paths = demo.save(tmp_path)
    layer = demo.model.layers["0"]
    good = layer.merged_arrays
    monkeypatch.setattr(layer, "merged_arrays", lambda active: {key: array * np.float32(1.001) for key, array in good(active).items()})
    assert [proof.holds for proof in demo.prove(*paths)] == [True, False, True, True]


def test_an_image_is_held_out_from_all_tasks_or_from_none():
    own, sideways, mirrored = make_tasks(3)
    images = own.held_out[0].reshape(-1, 8, 8)
    assert np.array_equal(sideways.held_out[0].reshape(-1, 8, 8), np.rot90(images, axes=(1, 2)))
    assert np.array_equal(mirrored.train[0].reshape(-1, 8, 8), own.train[0].reshape(-1, 8, 8)[:, :, ::-1])
    assert np.array_equal(own.held_out[1], mirrored.held_out[1])
    assert len(own.train[0]) + len(own.held_out[0]) == 1797
    assert own.train[0].dtype == np.float32
    assert 0 <= own.train[0].min() < own.train[0].max() == 1


def test_percentages_are_for_people():
    assert loratk.cli.demo._percent(0.98765) == "98.8"
    assert loratk.cli.demo._percent(None) == "-"
