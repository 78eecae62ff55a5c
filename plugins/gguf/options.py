"""What the options of the format say: values from the command line come as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loratk.errors import ConfigError

from .rows import HEADS, PERMUTED

MAX_HEADS = 1 << 20


def whole(name: str, value: Any) -> int | None:
    """A whole number from 1 up, or None where none is given."""
    if value is None:
        return None
    try:
        number = int(value) if isinstance(value, str | int) and not isinstance(value, bool) else 0
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_HEADS:
        raise ConfigError(f"the option {name} must be a whole number from 1 up, found {value!r}")
    return number


def choice(name: str, value: Any, known: Mapping[str, Any]) -> Any:
    """What one of a few words stands for; None stands for itself."""
    if value is None:
        return None
    if str(value).lower() not in known:
        raise ConfigError(f"the option {name} must be one of {', '.join(known)}, found {value!r}")
    return known[str(value).lower()]


TRUTHS = {"yes": True, "true": True, "no": False, "false": False}


class Heads:
    """Whether the rows of q and k are in llama.cpp's own order, and how many heads each has, by option or else by the file's metadata."""

    def __init__(self, architecture: str, permute: Any, given: Mapping[str, Any], known: Mapping[str, int]) -> None:
        asked = choice("permute", permute, TRUTHS)
        self.permuted = architecture in PERMUTED if asked is None else bool(asked)
        self.used: dict[str, int] = {}
        self._architecture = architecture
        self._counts = {name: whole(name, given.get(name)) or known.get(name) for name in HEADS.values()}

    def of(self, tensor: str, k: int, found: list[str]) -> int | None:
        """The heads of a tensor with k outputs whose rows are reordered; None for any other. What is wrong goes to `found`."""
        option = HEADS.get(tensor.split(".")[-1])
        if option is None or not self.permuted:
            return None
        heads = self._counts[option]
        if heads is None:
            asked = "attention heads" if option == "n_head" else "key and value heads (in config.json num_key_value_heads)"
            found.append(
                f"{tensor!r}: llama.cpp reorders its rows in the architecture {self._architecture!r}; say how many {asked} the base has: "
                f"{option}=NUMBER"
            )
        elif k % (2 * heads):
            found.append(f"{tensor!r} has {k} outputs, which {option}={heads} heads do not divide into pairs; is the number right?")
        else:
            self.used[option] = heads
            return heads
        return None
