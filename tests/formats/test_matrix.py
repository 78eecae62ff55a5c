"""Every format that is read into every format that is written: the same adapter, or a refusal by name.

Where both formats carry all that an adapter needs as it is, its factors are the same to the last bit, there and back; where one of them
holds it another way (a scaling folded in, ranks filled up) the update is the same but for rounding. The pairs come from the registry.
"""

from functools import cache
from pathlib import Path

import pytest
from format_examples import EXAMPLES, FORMATS

from loratk import load_adapter, save_adapter
from loratk.errors import ConfigError
from loratk.exchange import FEATURES, portable
from loratk.exchange.fit import DROPPED, needs
from loratk.testing import assert_same_adapter
from loratk.testing.format import HARD

DATA = Path(__file__).parent.parent / "data"
WRITABLE = sorted(name for name, format in FORMATS.items() if format.writable)
FILES = {
    "loralib": (DATA / "loralib.pt", {"alpha": 16, "enable_lora": "c_attn=TFT,one=FTF", "conv": "conv=3,grouped=3/2", "ignore": "*.bias"}),
}
"""Of formats that are only read, a file and how to read it."""


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


def written(name, state, folder, **more):
    """The path of a state in a format."""
    example, format = EXAMPLES[name], FORMATS[name]
    path = folder / f"{name}{'' if format.folder or not format.suffixes else format.suffixes[0]}"
    request = example.request(example.writes)
    save_adapter(path, example.renamed(state), format=name, options=request.options, base=request.base, **more)
    return path


def tried(name, state, folder):
    """The path of a state in a format, or the error that refuses it."""
    try:
        return written(name, state, folder), None
    except ConfigError as error:
        return None, error


def read(name, path):
    """The one adapter in a file, with the module names that `format_states` has; recognised by its content."""
    example = EXAMPLES[name]
    request = example.request(example.reads)
    (state,) = load_adapter(path, options=request.options, base=request.base).states
    return example.back(state)


def lacks(name, needed):
    return [feature for feature in needed if FORMATS[name].carries[feature] == "no" and feature not in (*DROPPED, "bfloat16")]


def exact(name, needed, title=""):
    asked = [feature for feature in needed if feature not in (*DROPPED, "bfloat16")]
    return title not in HARD and all(FORMATS[name].carries[feature] == "yes" for feature in asked)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A function from a format to the states that it can hold, read from its files, by title."""

    @cache
    def found(name):
        if name not in WRITABLE:
            path, options = FILES[name]
            return {"its own file": load_adapter(path, format=name, options=options).states[0]}
        folder, states = tmp_path_factory.mktemp(name), {}
        for title, state in EXAMPLES[name].states().items():
            path, error = tried(name, EXAMPLES[name].back(state), folder)
            states |= {} if error else {title: read(name, path)}
        return states

    return found


@pytest.mark.parametrize("target", WRITABLE)
@pytest.mark.parametrize("source", sorted(FORMATS))
def test_from_each_format_to_each_other(source, target, sources, tmp_path):
    taken = []
    for title, state in sources(source).items():
        needed = needs([state])
        missing = lacks(target, needed)
        path, error = tried(target, state, tmp_path)
        if error:
            assert [feature for feature in missing if FEATURES[feature] not in str(error)] == [], title
            assert missing or not exact(target, needed, title), f"{title}: {error}"
            continue
        assert not missing, title
        taken.append(title)
        got = read(target, path)
        same = exact(target, needed, title)
        marks = FORMATS[target].carries["bfloat16"] == "yes"
        names = FORMATS[target].carries["names"] != "no"
        assert_same_adapter(got, state, exact=same, names=names, marks=marks)
        if same and source in WRITABLE and exact(source, needed, title):
            again = read(source, written(source, got, tmp_path))
            assert_same_adapter(again, state, names=names, marks=marks and FORMATS[source].carries["bfloat16"] == "yes")
    assert taken or source not in WRITABLE, f"nothing goes from {source} to {target}"


@pytest.mark.parametrize("target", WRITABLE)
def test_portable_adapters_go_everywhere(target, tmp_path):
    """Linear layers of several ranks, rank-stabilised: with --portable they fit every format, and mean the same."""
    states = EXAMPLES[target].states()
    for title in ("ranks", "rank-stabilised", "alpha 1/3", "bfloat16"):
        state = EXAMPLES[target].back(states[title])
        got = read(target, written(target, portable(state), tmp_path))
        assert_same_adapter(got, state, exact=False, names=FORMATS[target].carries["names"] != "no")


@pytest.mark.parametrize("target", WRITABLE)
def test_what_a_format_does_not_carry_is_said_before_a_byte_is_written(target, tmp_path):
    for title, state in EXAMPLES[target].states().items():
        if missing := lacks(target, needs([state])):
            with pytest.raises(ConfigError, match="cannot hold all of it") as caught:
                written(target, EXAMPLES[target].back(state), tmp_path)
            assert [feature for feature in missing if FEATURES[feature] not in str(caught.value)] == [], title
            assert list(tmp_path.iterdir()) == []


def test_every_format_that_is_only_read_has_a_file():
    assert sorted(FILES) == sorted(FORMATS.keys() - set(WRITABLE))
