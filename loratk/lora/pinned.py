"""Ranks and alphas that were found layer by layer, written into a config."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..exchange.configs import exact_pattern
from .config import LoraConfig
from .targets import matches


@dataclass(frozen=True)
class Block:
    """A module or column block that has an adapter: its path, its module's, whether that is linear, its rank (0: none) and alpha."""

    name: str
    within: str
    linear: bool
    rank: int
    alpha: float


def pinned(config: LoraConfig, blocks: Sequence[Block], *, among: Collection[str]) -> LoraConfig:
    """The config with these ranks and alphas in its patterns, by exact path, and what has rank 0 excluded.

    `blocks` are all that the config means, `among` all paths that the model has. A model takes it as it took the one before, without data.
    """
    names = {*among, *(block.name for block in blocks)}
    kept = [block for block in blocks if block.rank]
    dropped = tuple(exact_pattern(block.name, names) for block in blocks if not block.rank)
    layers = {
        pattern: values
        for pattern, values in config.layer_pattern.items()
        if any(matches(pattern, name, linear=block.linear) for block in kept for name in (block.name, block.within))
    }
    config = config.replace(exclude=config.exclude + dropped, layer_pattern=layers, rank_pattern={}, alpha_pattern={})
    ranks, alphas = {}, {}
    for block in kept:
        pattern = exact_pattern(block.name, names)
        if config.rank_of(block.name, block.within, linear=block.linear) != block.rank:
            ranks[pattern] = block.rank
        if config.alpha_of(block.name, block.within, linear=block.linear) != block.alpha:
            alphas[pattern] = block.alpha
    return config.replace(rank_pattern=ranks, alpha_pattern=alphas)
