"""docs/from-java.md: every cell of its right columns runs, and what compares holds."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "from-java.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| `([^|]*)` \|$", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def names():
    """What the page says stands before its cells."""
    space = {}
    exec(re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1], space)
    return space


def test_the_page_has_its_rows():
    assert len(ROWS) > 85


@pytest.mark.parametrize(("java", "here"), ROWS, ids=[f"{i}-{here[:40]}" for i, (_, here) in enumerate(ROWS)])
def test_row(java, here, names):
    got = eval(here, names)
    assert got is not False, java
    if " == " in here or " is " in here:
        assert got is True
