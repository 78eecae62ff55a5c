"""Write docs/kernels.md from the docstrings of the reference kernels: python docs/make_kernels.py"""

from pathlib import Path

from loratk.kernels import get_backend
from loratk.kernels.reference import FAMILIES

PAGE = Path(__file__).parent / "kernels.md"
HEAD = """# Kernels

A kernel takes arrays by position and everything else by keyword. Its meaning is the NumPy function of that name in
`loratk/kernels/reference/`; the backends `cpu` and `cuda` have the same names and are tested against it. `loratk.get_backend("cpu")`
has each kernel as an attribute. The column `cpu` says what runs there: compiled loops, or the reference's NumPy where that is as fast.

This page is made by `docs/make_kernels.py`.
"""


def page() -> str:
    reference, cpu = get_backend("reference").kernels, get_backend("cpu").kernels
    lines = [HEAD]
    for family in FAMILIES:
        title, meaning = family.__name__.rpartition(".")[2], " ".join(family.__doc__.split("\n\n")[0].split())
        lines += [
            f"## {title}",
            "",
            meaning,
            "",
            "| kernel | what it is | cpu |",
            "| --- | --- | --- |",
        ]
        for name in family.__all__:
            text = " ".join(reference[name].__doc__.split("\n\n")[0].split()).replace("|", "\\|")
            lines.append(f"| `{name}` | {text} | {'NumPy' if cpu[name] is reference[name] else 'own'} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
