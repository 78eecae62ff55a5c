"""From a config to what each layer starts with: the data that its methods and inits ask for, and the ranks that inits find in it."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, faults
from .config import LoraConfig
from .evidence import Watch, checked, observe
from .inits import Init, Seen
from .pinned import Block, pinned
from .settings import LayerSettings
from .targets import Candidate, find_candidates, select
from .tree import modules

if TYPE_CHECKING:
    from .named import NamedAdapters

Chosen = list[tuple[Candidate, list[str]]]


@dataclass(frozen=True)
class _Asked:
    """One block that needs data, for its init or, where that is None, its method."""

    candidate: Candidate
    block: str
    settings: LayerSettings
    init: Init | None
    needs: str

    @property
    def name(self) -> str:
        return self.candidate.block_name(self.block)

    @property
    def columns(self) -> slice:
        return slice(*self.candidate.blocks[self.block])

    @property
    def shape(self) -> tuple[int, int]:
        start, stop = self.candidate.blocks[self.block]
        return self.candidate.layer_type.shape(self.candidate.module)[0], stop - start

    @property
    def who(self) -> str:
        return f"the method {self.settings.method!r}" if self.init is None else f"the init {self.init.name!r}"

    @property
    def options(self) -> dict[str, Any]:
        """The init's."""
        return {} if self.init is None else {**self.init.options, **self.settings.init_options}


def prepare(
    model: "NamedAdapters", config: LoraConfig, chosen: Chosen, data: Any, loss: Any
) -> tuple[LoraConfig, Chosen, Mapping[str, Mapping[str, Any]]]:
    """What a config's methods and inits need, from one pass over `data`: the config with the ranks they found, its modules, the evidence.

    The evidence is by module and block. Raises ConfigError for data or a loss that is missing, and for such that nothing asks for.
    """
    asked = list(_asked(model, config, chosen))
    needs = {one.needs for one in asked}
    _check(asked, needs, data, loss)
    if not asked:
        return config, chosen, {}
    watches: dict[str, Watch] = {}
    evidence: dict[str, dict[str, Any]] = defaultdict(dict)
    for one in asked:
        watch = watches.setdefault(one.candidate.name, Watch(one.candidate.layer_type))
        if one.init is None or one.needs == "gradients":
            watch.gradient = True
        else:
            gatherer = one.init.gather(*one.shape, one.settings.rank, one.options)
            watch.gatherers = [*watch.gatherers, gatherer]
            evidence[one.candidate.name][one.block] = gatherer
    with model.disabled():
        observe(model.base, watches, checked(data), loss)
    for one in asked:
        if one.needs == "gradients":
            evidence[one.candidate.name][one.block] = watches[one.candidate.name].mean()[:, one.columns]
    config, chosen = _shared_out(model, config, chosen, asked, evidence)
    return config, chosen, evidence


def _asked(model: "NamedAdapters", config: LoraConfig, chosen: Chosen) -> Iterator[_Asked]:
    for candidate, blocks in chosen:
        for block in blocks:
            settings = config.layer(candidate.block_name(block), candidate.name, linear=candidate.layer_type.linear)
            if needs := model.registry.method(settings.method).needs(settings.options):
                yield _Asked(candidate, block, settings, None, needs)
            elif settings.init_name is not None and (init := model.registry.init(settings.init_name)).needs:
                yield _Asked(candidate, block, settings, init, init.needs)


def _check(asked: Sequence[_Asked], needs: set[str], data: Any, loss: Any) -> None:
    names = " and ".join(sorted({one.who for one in asked}))
    found = []
    if asked and data is None:
        also = " of pairs (x, y), and loss=, a function of outputs and y" if "gradients" in needs else " of x or (x, y)"
        found.append(f"{names} starts from data: give data=, an iterable of batches{also}")
    elif "gradients" in needs and loss is None:
        found.append(f"{names} starts from gradients: give loss=, a function of outputs and y")
    if data is not None and not asked:
        found.append("data was given, but nothing in this config starts from data; leave it out, or choose an init such as 'eva'")
    if loss is not None and "gradients" not in needs:
        found.append("a loss was given, but nothing in this config starts from gradients; leave it out, or choose one such as 'lora_ga'")
    if loss is not None and not callable(loss):
        found.append(f"loss must be a function of outputs and y, found {loss!r}")
    if found:
        raise ConfigError(faults("This adapter cannot be started:", found))


def _shared_out(
    model: "NamedAdapters", config: LoraConfig, chosen: Chosen, asked: Sequence[_Asked], evidence: dict[str, dict[str, Any]]
) -> tuple[LoraConfig, Chosen]:
    """The config with the ranks that inits find better, and the modules that are left."""
    ranks: dict[str, int] = {}
    groups: dict[tuple[str, str], list[_Asked]] = defaultdict(list)
    for one in (one for one in asked if one.init is not None):
        groups[one.who, repr(sorted(one.options.items()))].append(one)
    for group in groups.values():
        seen = {one.name: Seen(one.shape, one.settings.rank, evidence[one.candidate.name][one.block]) for one in group}
        if (init := group[0].init) is not None:
            ranks |= init.ranks(seen, group[0].options)
    before = {one.name: one.settings.rank for one in asked}
    if all(rank == before[name] for name, rank in ranks.items()):
        return config, chosen
    blocks = []
    for candidate, names in chosen:
        for block in names:
            name = candidate.block_name(block)
            settings = config.layer(name, candidate.name, linear=candidate.layer_type.linear)
            rank = ranks.get(name, settings.rank)
            ratio = rank / settings.rank
            alpha = settings.alpha * (ratio**0.5 if settings.rslora else ratio)
            blocks.append(Block(name, candidate.name, candidate.layer_type.linear, rank, alpha))
    config = pinned(config, blocks, among=all_names(model))
    return config, select(modules(model.base), config, model.registry)


def all_names(model: "NamedAdapters") -> set[str]:
    """The paths of all modules and column blocks that could have an adapter."""
    candidates = find_candidates(modules(model.base), model.registry)
    return {candidate.name for candidate in candidates} | {c.block_name(block) for c in candidates for block in c.blocks}


def start_faults(chosen: Chosen, config: LoraConfig, inits: Mapping[str, Init]) -> list[str]:
    """Why inits cannot start adapters of some layers and column blocks, a line each."""
    found = []
    for candidate, blocks in chosen:
        d, _ = candidate.layer_type.shape(candidate.module)
        for block in blocks:
            start, stop = candidate.blocks[block]
            name = candidate.block_name(block)
            settings = config.layer(name, candidate.name, linear=candidate.layer_type.linear)
            if settings.init_name is not None:
                init = inits[settings.init_name]
                options = {**init.options, **settings.init_options}
                found += [f"{name!r}: {line}" for line in init.layer_faults(d, stop - start, settings.rank, settings.scaling, options)]
    return found
