"""`loratk demo`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .context import registry
from .show import table

if TYPE_CHECKING:
    from ..demo import Demo, Proof


@click.command("demo", short_help="Train and prove adapters on real handwritten digits.")
@click.option(
    "--rank", type=click.IntRange(1, 10), default=4, show_default=True, help="Rank of the adapters; the last layer has 10 columns."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides all random numbers: equal seeds, equal results."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    default="loratk-demo",
    show_default=True,
    help="Folder for the files.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda", "reference"]), default="cpu", show_default=True, help="What computes.")
@click.option("--quiet", is_flag=True, help="Print only the table of accuracies, and errors.")
def command(rank: int, seed: int, out: Path, device: str, quiet: bool) -> None:
    """Show on real handwritten digits what adapters are for, and prove what they promise.

    Trains a classifier, then one adapter for each of two changed tasks, on which the classifier fails. Writes the weights
    (base.h5), both adapters (adapters.h5) and a picture of the training (curves.png) into a folder, replacing those of an
    earlier run. Exit code 1 if a proof fails.
    """
    import time

    from ..demo import Demo, make_folder

    start = time.perf_counter()
    say: Callable[[str], None] = (lambda text: None) if quiet else click.echo
    demo = Demo(rank=rank, seed=seed, backend=device, registry=registry(), progress=not quiet)
    make_folder(out)
    _warn_of_compiling(device, quiet)
    train(demo, say)
    say("Right on held-out images, in %:")
    accuracies(demo)
    base, adapters = demo.save(out)
    proofs = demo.prove(base, adapters)
    if not quiet:
        say("\nProofs, on all held-out images:")
        for proof in proofs:
            show(proof)
        say("\nWhat an adapter costs beside a weight of 1024 x 1024:")
        efficiencies()
        files = [base, adapters, *picture(demo, out)]
        say("\nWritten: " + ", ".join(map(str, files)))
        say(f"Look inside: loratk inspect {adapters}")
        say(f"Fold one in: loratk export {adapters} merged.npz --merged --base {base} --adapter {demo.changed[0].name}")
        click.echo(f"{time.perf_counter() - start:.1f} s in all", err=True)
    failed = [proof for proof in proofs if not proof.holds]
    if failed:
        click.echo("Error: " + "; ".join(f"not so: {proof.claim} ({proof.seen})" for proof in failed), err=True)
        click.get_current_context().exit(1)


def _warn_of_compiling(device: str, quiet: bool) -> None:
    from ..kernels.runtime import cache_dir

    if device != "cpu" or quiet:
        return
    folder = cache_dir()
    if folder is None or not any(folder.rglob("*.nbi")):
        click.echo("The first run compiles the kernels, which takes some seconds.", err=True)


def train(demo: "Demo", say: Callable[[str], None]) -> None:
    """Train everything, saying what comes of it."""
    from ..demo import SIZES

    held_out, changed = len(demo.own.held_out[0]), [task.name for task in demo.changed]
    say(f"Handwritten digits (UCI, CC BY 4.0), 8 x 8 pixels: {len(demo.own.train[0]):,} to train on, {held_out} held out.\n")
    right = demo.train_base()
    say(f"A base classifier, {'-'.join(map(str, SIZES))}, gets {right:.1%} of the held-out images right.")
    say("On changed images it fails: " + ", ".join(f"{name} {demo.base_accuracy(name):.1%}" for name in changed) + ".\n")
    trained = [f"{name} {demo.train_adapter(name):.1%}" for name in changed]
    base, adapter = demo.counts()
    say(f"With the base frozen, an adapter for each, {adapter:,} numbers beside {base:,} ({adapter / base:.1%}): {', '.join(trained)}.\n")


def accuracies(demo: "Demo") -> None:
    """Print the table of accuracies."""
    rows = [(row.task, *map(_percent, (row.base, row.off, row.on, row.merged))) for row in demo.accuracies()]
    head = ("task", "base", "adapter off", "adapter on", "merged")
    table(head, rows, right=head[1:])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def show(proof: "Proof") -> None:
    """Print a proof as a line."""
    mark = click.style("holds ", fg="green") if proof.holds else click.style("FAILS ", fg="red", bold=True)
    click.echo(f"  {mark} {proof.claim} ({proof.seen})")


def efficiencies() -> None:
    """Print what LoRA adapters of several ranks cost."""
    from ..lora.report import efficiency

    rows = [(str(e.rank), f"{e.parameters:,}", f"{e.reduction:.2%}", f"{e.ratio:.4f}") for e in efficiency(1024, 1024)]
    head = ("rank", "parameters", "reduction", "of the weight")
    table(head, rows, right=head)


def picture(demo: "Demo", out: Path) -> list[Path]:
    """Draw the curves, if that can be done here."""
    from ..demo import draw
    from ..errors import DependencyError

    path = out / "curves.png"
    try:
        draw(demo.histories, {task.name: demo.base_accuracy(task.name) for task in demo.changed}, path)
    except DependencyError as error:
        click.echo(f"No picture of the training: {error}", err=True)
        return []
    return [path]
