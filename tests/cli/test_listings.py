"""`plugins` and `info`."""

import json

import numpy
import pytest

from loratk.kernels import BACKENDS
from loratk.plugins import default_registry


def rows(text):
    return [line.split() for line in text.splitlines()]


def test_plugins_lists_everything_registered_with_its_owner(run):
    got = run("plugins")
    assert got.exit_code == 0
    listed = {(" ".join(row[:2]) if row[0] in ("layer", "merge") else row[0], row[-1]) for row in rows(got.stdout)[1:]}
    assert listed == {(kind, owner) for (kind, _), owner in default_registry().owners.items()}
    assert len(rows(got.stdout)) == len(default_registry().owners) + 1
    assert "method dora lora" in " ".join(got.stdout.split())
    assert "store hdf5 .h5 .hdf5 io" in " ".join(got.stdout.split())


def test_without_leaves_a_plugin_out(run):
    got = run("--without", "io", "plugins")
    assert got.exit_code == 0
    assert "hdf5" not in got.stdout
    assert "dora" in got.stdout
    assert "dora" not in run("--without", "io", "--without", "lora", "plugins").stdout


def test_without_an_unknown_plugin_is_an_error(run):
    got = run("--without", "ghost", "plugins")
    assert got.exit_code == 1
    assert "no plugin 'ghost'" in got.stderr
    assert "'lora'" in got.stderr


def test_without_reaches_every_command_that_reads_files(run, files):
    got = run("--without", "io", "inspect", files.adapters)
    assert got.exit_code == 1
    assert "no store recognises" in got.stderr


def test_info_as_json(run):
    got = json.loads(run("info", "--json").stdout)
    assert got["packages"]["numpy"] == numpy.__version__
    assert set(got["packages"]) >= {"numpy", "numba", "llvmlite", "h5py"}
    assert got["threads"] >= 1
    assert set(got["backends"]) == set(BACKENDS)
    assert got["backends"]["cpu"].startswith("available")
    assert got["backends"]["cuda"].startswith(("available", "not available: The backend 'cuda'"))
    assert {"lora", "io"} <= set(got["plugins"])


def test_info_for_people_says_the_same(run):
    text, facts = run("info").stdout, json.loads(run("info", "--json").stdout)
    for want in (facts["loratk"], facts["python"], facts["packages"]["numba"], facts["processor"], str(facts["cache"]["folder"])):
        assert want in text


@pytest.mark.parametrize("threads", ["1", "3"])
def test_info_follows_the_environment(threads):
    import os
    import subprocess
    import sys

    got = subprocess.run(
        [sys.executable, "-m", "loratk", "info", "--json"],
        env=os.environ | {"LORATK_NUM_THREADS": threads},
        capture_output=True,
        check=True,
    )
    assert json.loads(got.stdout)["threads"] == int(threads)
