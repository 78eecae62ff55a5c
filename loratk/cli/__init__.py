"""The command line. Each command is a file of its own, and what it works with is imported when it runs."""

import importlib

import click

from .. import __version__
from ..errors import LoratkError

COMMANDS = ("demo", "export", "merge", "unmerge", "combine", "resize", "extract", "inspect", "compare", "diff", "verify", "plugins", "info")


class Commands(click.Group):
    """The commands, and what becomes of errors: one line for those raised on purpose, a traceback for a bug."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name, or None."""
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{name}", __name__).command
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; exit code 1 for an error, 130 (as shells have it) for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except LoratkError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            ctx.exit(130)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="loratk", message="%(prog)s %(version)s")
@click.option("--without", metavar="NAME", multiple=True, help="Leave a plugin out; may be repeated. `loratk plugins` lists them.")
@click.pass_context
def main(ctx: click.Context, without: tuple[str, ...]) -> None:
    """Train, merge, convert and inspect low-rank adapters, without a deep-learning framework.

    Results go to standard output, messages to standard error. Exit codes: 0 success, 1 error, 2 wrong usage, 3 different
    (diff), 130 Ctrl-C.
    """
    ctx.obj = without
