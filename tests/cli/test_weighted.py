"""FILE[#NAME][:WEIGHT] on the command line."""

from pathlib import Path

import click
import pytest

from loratk.cli.weighted import weighted


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a.h5", ("a.h5", None, 1.0)),
        ("a.h5:0.5", ("a.h5", None, 0.5)),
        ("a.h5#one:-2", ("a.h5", "one", -2.0)),
        ("a.h5#one", ("a.h5", "one", 1.0)),
        ("C:\\a.h5", ("C:\\a.h5", None, 1.0)),
        ("C:\\a.h5:-2e-1", ("C:\\a.h5", None, -0.2)),
        ("dir:x/a", ("dir:x/a", None, 1.0)),
        (":3", (":3", None, 1.0)),
        ("#b", ("#b", None, 1.0)),
    ],
)
def test_the_parts_of_a_text(text, want):
    assert weighted(text) == (Path(want[0]), *want[1:])


@pytest.mark.parametrize("name", ["step:100", "a#b", "a#b:2"])
def test_a_path_that_is_there_is_taken_as_it_is(tmp_path, name):
    path = tmp_path / name
    path.touch()
    assert weighted(str(path)) == (path, None, 1.0)


@pytest.mark.parametrize("weight", ["abc", "1.2.3", "nan", "inf", ""])
def test_a_weight_behind_a_file_must_be_a_number(tmp_path, weight):
    (tmp_path / "a.h5").touch()
    for name in ("", "#one"):
        with pytest.raises(click.UsageError, match=f"must be a finite number, found '{weight}'"):
            weighted(f"{tmp_path / 'a.h5'}{name}:{weight}")
