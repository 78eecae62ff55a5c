import sys

import numpy as np
import pytest

from loratk.describe import describe
from loratk.errors import ConfigError, DependencyError, StoreError
from loratk.exchange import AdapterState, write_adapters
from loratk.picture import draw
from loratk.plugins import default_registry

PNG = b"\x89PNG\r\n\x1a\n"


def report(path, count=3, method="lora", **changes):
    rng = np.random.default_rng(0)
    tensors, modules = {}, {}
    for block in range(count):
        for kind in ("q", "v"):
            name = f"layers.{block}.{kind}"
            tensors |= {f"{name}.lora_A": rng.standard_normal((6, 2)), f"{name}.lora_B": rng.standard_normal((2, 4)) * (block > 0)}
            modules[name] = {"method": method, "shape": [6, 4], "rank": 2, "alpha": 2.0, "scaling": 1.0} | changes
    write_adapters(path, [AdapterState("mine", {}, tensors, modules)], stores=default_registry().stores)
    return describe(path, spectra=True)


@pytest.mark.parametrize("count", [1, 3, 30])
def test_bars_and_maps(tmp_path, count):
    draw(report(tmp_path / "a.h5", count), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)
    assert len((tmp_path / "p.png").read_bytes()) > 10_000


def test_the_command_draws_all_adapters_and_still_prints(run, files, tmp_path):
    got = run("inspect", files.adapters, "--plot", tmp_path / "p.svg", "--base", files.base)
    assert got.exit_code == 0, got.stderr
    assert f"Drew {tmp_path / 'p.svg'}." in got.stderr
    assert "adapter 'one'" in got.stdout
    assert "<svg" in (tmp_path / "p.svg").read_text()


def test_what_cannot_be_drawn_is_an_error(run, files, tmp_path):
    found = report(tmp_path / "a.h5")
    with pytest.raises(ConfigError, match=r"the suffix must be one of .*\.png"):
        draw(found, tmp_path / "p.xyz")
    with pytest.raises(StoreError, match="there is no folder"):
        draw(found, tmp_path / "none" / "p.png")
    got = run("inspect", files.adapters, "--adapter", "two")
    assert got.exit_code == 2  # no such option
    got = run("export", files.adapters, tmp_path / "two.h5", "--adapter", "two")
    got = run("inspect", tmp_path / "two.h5", "--plot", tmp_path / "p.png")
    assert got.exit_code == 1
    assert "no update whose size can be told" in got.stderr


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r"pip install 'loratk\[plot\]'"):
        draw(report(tmp_path / "a.h5"), tmp_path / "p.png")
