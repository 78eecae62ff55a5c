"""Write the tables of formats into docs/exchange.md from the formats themselves: python docs/make_exchange.py"""

import re
from collections.abc import Iterator
from pathlib import Path

from loratk.exchange import FEATURES, AdapterFormat, formats_of
from loratk.plugins import build_registry

PAGE = Path(__file__).parent / "exchange.md"
BLOCK = re.compile(r"(?<=<!-- made by make_exchange.py -->\n).*?(?=<!-- end -->)", re.DOTALL)


def tables() -> str:
    """A line for each format, a line for each feature, and a section for each format: what it holds in its own way, and its options."""
    ours = ("loratk.", "loratk_plugins.")
    formats = {name: format for name, format in formats_of(build_registry()).items() if type(format).__module__.startswith(ours)}
    lines = ["", "| format | what it is | names end in | written |", "|---|---|---|---|"]
    lines += [_row(name, format) for name, format in formats.items()]
    lines += ["", f"| what an adapter may have | {' | '.join(f'`{name}`' for name in formats)} |", f"|---|{'---|' * len(formats)}"]
    for feature, title in FEATURES.items():
        lines.append(f"| {title} | {' | '.join(_cell(format.carries[feature]) for format in formats.values())} |")
    for name, format in formats.items():
        lines += ["", *_section(name, format)] if any(_details(format)) else []
    return "\n".join([*lines, "", ""])


def _row(name: str, format: AdapterFormat) -> str:
    ends = ", ".join(f"`{end}`" for end in format.suffixes) or ("a folder" if format.folder else "any")
    return f"| `{name}` | {format.title} | {ends} | {'yes' if format.writable else 'no'} |"


def _cell(text: str) -> str:
    return {"yes": "yes", "no": "-"}.get(text, "so")


def _details(format: AdapterFormat) -> Iterator[str]:
    for feature, title in FEATURES.items():
        if format.carries[feature] not in ("yes", "no"):
            yield f"- {title}: {format.carries[feature]}"
    if format.options:
        yield ""
        yield "| option | what it is | as a default |"
        yield "|---|---|---|"
    for name, option in format.options.items():
        default = "" if option.default is None else f"`{option.default}`"
        yield f"| `{name}` | {option.help} | {default} |".replace("*", "\\*")


def _section(name: str, format: AdapterFormat) -> list[str]:
    details = list(_details(format))
    return [f"### {name}: {format.title}", "", *(details[1:] if details[0] == "" else details)]


def page(text: str) -> str:
    """The page with the tables as they are now."""
    assert len(BLOCK.findall(text)) == 1, "docs/exchange.md must have one place for the tables"
    return BLOCK.sub(lambda _: tables(), text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
