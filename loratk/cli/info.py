"""`loratk info`."""

import importlib.metadata
import json
import platform
from typing import Any

import click

from .context import registry
from .show import size

PACKAGES = ("numpy", "numba", "llvmlite", "h5py", "pluggy", "click", "rich", "matplotlib")


@click.command("info", short_help="Show what a report of a bug needs.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(as_json: bool) -> None:
    """Show what a report of a bug needs: versions, processor, threads, backends, the cache of compiled kernels."""
    facts = gather()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    cache = facts["cache"]
    cache_text = (
        f"{cache['folder']}, {size(cache['bytes'])} in {cache['files']} files" if cache["folder"] else "none: no folder can be written"
    )
    lines = {
        "loratk": facts["loratk"],
        "Python": f"{facts['python']}, {facts['platform']}",
        "packages": ", ".join(f"{name} {version or '(not installed)'}" for name, version in facts["packages"].items()),
        "processor": f"{facts['processor']}, vector registers of {facts['vector_bits']} bits",
        "threads": f"{facts['threads']}, {facts['pool']}",
        **{f"backend {name}": state for name, state in facts["backends"].items()},
        "kernel cache": cache_text,
        "plugins": ", ".join(facts["plugins"]),
    }
    width = max(map(len, lines))
    for key, text in lines.items():
        click.echo(f"{key.ljust(width)}  {text}")


def gather() -> dict[str, Any]:
    """The facts, as values that JSON can hold."""
    from llvmlite import binding

    from .. import __version__
    from ..kernels import BACKENDS
    from ..kernels.runtime import get_num_threads, vector_bytes

    return {
        "loratk": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "processor": binding.get_host_cpu_name(),
        "vector_bits": 8 * vector_bytes()[0],
        "threads": get_num_threads(),
        "pool": "Python threads around compiled loops (LORATK_NUM_THREADS sets how many)",
        "backends": {name: _backend(name) for name in BACKENDS},
        "cache": _cache(),
        "plugins": _plugins(),
    }


def _plugins() -> list[str]:
    """Their names; if one is broken, which, as that is what a report may be about."""
    from ..errors import PluginError

    try:
        return sorted(set(registry().owners.values()))
    except PluginError as error:
        return [f"broken: {error}"]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _backend(name: str) -> str:
    from ..errors import BackendError
    from ..kernels import get_backend

    try:
        return f"available, {len(get_backend(name).kernels)} kernels"
    except BackendError as error:
        return f"not available: {error}"


def _cache() -> dict[str, Any]:
    from ..kernels.runtime import cache_dir

    folder = cache_dir()
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder else []
    return {"folder": str(folder) if folder else None, "files": len(files), "bytes": sum(files)}
