"""Pages that are made from the code say what the code says."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_kernels_is_up_to_date():
    made = load("make_kernels")
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run: python docs/make_kernels.py"


def test_the_tables_of_formats_are_up_to_date():
    made = load("make_exchange")
    text = made.PAGE.read_text(encoding="utf-8")
    assert made.page(text) == text, "run: python docs/make_exchange.py"


def test_the_declarations_for_authors_of_plugins_are_up_to_date():
    made = load("make_plugins")
    text = made.PAGE.read_text(encoding="utf-8")
    assert made.page(text) == text, "run: python docs/make_plugins.py"


def test_every_page_is_reached_from_the_readme():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in sorted(DOCS.glob("*.md")) if f"docs/{page.name}" not in readme] == []


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in sorted(DOCS.glob("*.md")))])
def test_links_lead_somewhere(page):
    path = DOCS.parent / page
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("http") and not (path.parent / link).exists()] == []
