"""Every error loratk raises on purpose.

All derive from `LoratkError`, so one `except` catches them; each is also the builtin it resembles, so
code that knows nothing of loratk still catches it. A message says what was wanted, what was found,
where, and what to do.
"""

import re
from collections.abc import Iterable

MANY = 8
"""How many faults that differ in a name alone are told one by one."""
THE_NAME = "\0"
"""Where a fault says the name once more."""
_NAMED = re.compile(r"((?:.*\W)?)(module|tensor) ('[^'\n]*')(.*)", re.DOTALL)
"""What is before the last name of a module or tensor, its kind, the name, and what is wrong with it."""


class LoratkError(Exception):
    """The base of every error that loratk raises on purpose."""

    def __str__(self) -> str:  # KeyError would show the repr of its argument
        return str(self.args[0]) if self.args else ""


class ConfigError(LoratkError, ValueError):
    """A configuration or argument value that makes no sense."""


class ShapeError(LoratkError, ValueError):
    """An array whose shape does not fit."""


class DtypeError(LoratkError, TypeError):
    """An array whose dtype does not fit."""


class UnknownNameError(LoratkError, KeyError):
    """A name that nothing answers to: a module, a parameter, an adapter, a method, a store."""


class StateError(LoratkError, RuntimeError):
    """A call that the object's present state forbids, such as merging twice."""


class GraphError(LoratkError, RuntimeError):
    """A backward pass that cannot be run, such as a second one over the same graph."""


class AnomalyError(LoratkError, ArithmeticError):
    """A value that is NaN or infinite where training or a check cannot go on with it."""


class BackendError(LoratkError, RuntimeError):
    """A backend that is not there, or cannot do what was asked."""


class PluginError(LoratkError, RuntimeError):
    """A plugin that breaks the contract, or two that claim the same name."""


class FormatError(LoratkError, ValueError):
    """A file that is broken, of another format, or does not belong to this model."""


class StoreError(LoratkError, OSError):
    """A file that cannot be read or written: missing, no permission, disk full."""


class DependencyError(LoratkError, ImportError):
    """An optional package that is asked for but not installed."""


def choices(names: Iterable[str]) -> str:
    """The names, quoted and sorted, for the end of a message: `'a', 'b'`, or `none`."""
    return ", ".join(repr(name) for name in sorted(names)) or "none"


def faults(title: str, found: Iterable[str]) -> str:
    """One message out of many faults: the title, then one line a fault, as `together` gives them; a fault with faults is indented."""
    return "\n".join([title, *(f"  - {fault}".replace("\n", "\n  ") for fault in together(found))])


def together(found: Iterable[str]) -> list[str]:
    """The faults, with those of many modules or tensors that differ in its name alone as one that names the first few and counts them."""
    groups: dict[tuple[str, ...], list[str]] = {}
    key: tuple[str, ...]
    for fault in found:
        split = _NAMED.fullmatch(fault)
        key = (split[1], split[2], _without(split[3], split[4])) if split else (fault,)
        groups.setdefault(key, []).append(split[3] if split else fault)
    lines: list[str] = []
    for key, names in groups.items():
        if len(key) == 1 or len(names) <= MANY:
            lines += names if len(key) == 1 else [f"{key[0]}{key[1]} {name}{key[2].replace(THE_NAME, name[1:-1])}" for name in names]
        else:
            lines.append(f"{key[0]}each of {len(names)} {key[1]}s ({', '.join(names[:3])}, ...){key[2].replace(THE_NAME, f'<{key[1]}>')}")
    return lines


def _without(name: str, text: str) -> str:
    """A text with THE_NAME where the quoted name, or what belongs to it, is quoted in it."""
    return text.replace(name, f"'{THE_NAME}'").replace(f"{name[:-1]}.", f"'{THE_NAME}.")
