"""Which adapters a report is about, and what they are called."""

import pytest
from algebra_states import module, state

from loratk.algebra.interference import compare
from loratk.errors import ConfigError, LoratkError, UnknownNameError
from loratk.exchange import save_adapter


@pytest.fixture
def write(tmp_path):
    def write(name, *names, path="m"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_adapter(tmp_path / name, [state({path: module(len(each))}, each) for each in names])
        return tmp_path / name

    return write


def labels(*given, **options):
    return [adapter.label for adapter in compare(given, **options).adapters]


def test_labels_are_the_shortest_that_differ(write, tmp_path):
    one, two, both = write("a.h5", "x"), write("b.npz", "y"), write("c.h5", "x", "zz")
    assert labels(one, two) == ["x", "y"]
    assert labels(one, both) == ["a", "c:x", "c:zz"]
    assert labels(one, one) == ["a (1)", "a (2)"]
    assert labels(both) == ["x", "zz"]
    other = write("in/a.h5", "x")
    assert labels(one, other) == [str(one), str(other)]
    assert labels(one, write("a.npz", "x")) == ["a.h5", "a.npz"]
    assert labels(one, state({"m": module()}, "x")) == ["a", "x"]


def test_names_choose(write):
    one, both = write("a.h5", "x"), write("c.h5", "x", "zz", "w")
    assert labels(both, names=["x", "w"]) == ["w", "x"]  # in the order of the file
    assert labels(one, both, names=["x"]) == ["a", "c"]
    with pytest.raises(
        UnknownNameError, match=r"(?s)no adapter is named 'v'; there are 'w', 'x', 'zz'.*a.h5' holds none of them, only 'x'"
    ):
        compare([one, both], names=["w", "v"])


def test_other_paths_bring_modules_together(write):
    one, two = write("a.h5", "x", path="model.q"), write("b.h5", "y", path="unet.q")
    assert compare([one, two]).pairs[0].only_a == ["model.q"]
    (found,) = compare([one, two], rename={"unet": "model"}).pairs
    assert [module.name for module in found.modules] == ["model.q"]
    with pytest.raises(ConfigError, match="'text' is neither a module of any of the adapters nor the beginning of one"):
        compare([one, two], rename={"text": "model"})


def test_options_go_to_the_formats_that_have_them(write, tmp_path):
    one = write("a.h5", "x")
    with pytest.raises(ConfigError, match="No format here has the option 'nothing'"):
        compare([one, one], options={"nothing": "1"})
    with pytest.raises(LoratkError):
        compare([one, tmp_path / "none.h5"])
    with pytest.raises(LoratkError):
        compare([one, one], format="peft")
