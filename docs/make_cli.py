"""Write the help texts into docs/cli.md: python docs/make_cli.py"""

import re
from pathlib import Path

from click.testing import CliRunner

from loratk.cli import COMMANDS, main

PAGE = Path(__file__).parent / "cli.md"
BLOCK = re.compile(r"```text\n\$ loratk (.*?)--help\n.*?```", re.DOTALL)


def help_text(name: str) -> str:
    """What `loratk NAME --help` prints; without a name, `loratk --help`."""
    run = CliRunner().invoke(main, [*name.split(), "--help"], prog_name="loratk", terminal_width=100, max_content_width=100)
    assert run.exit_code == 0, run.output
    return run.output.rstrip()


def page(text: str) -> str:
    """The page with every help text as it is now. Each command must have one."""
    missing = [name for name in COMMANDS if f"$ loratk {name} --help" not in text]
    assert not missing, f"docs/cli.md has no block for {missing}"
    return BLOCK.sub(lambda found: f"```text\n$ loratk {found[1]}--help\n{help_text(found[1])}\n```", text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
