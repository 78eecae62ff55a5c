"""Named adapters in a base: put in by pattern, renamed, switched, weighted, and taken out again."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ..errors import ConfigError, DtypeError, FormatError, StateError, UnknownNameError, choices, faults
from ..nn import Module, Parameter
from ..nn.state import state_faults
from ..plugins import Registry, default_registry
from .config import LoraConfig
from .gate import Gate, alone
from .layer import LoraLayer
from .layer_adapter import check_adapter_name
from .placing import biased_modules, rank_faults
from .selection import Owner
from .sharing import tie
from .starting import prepare, start_faults
from .targets import select
from .tree import ROOT, modules, swap, walk
from .weights import Active, as_weights


class NamedAdapters(Module):
    """The adapters of a base by name: which there are, in which layers, and which are active. `LoraModel` is made of it."""

    def __init__(self, base: Module, *, registry: Registry | None = None) -> None:
        if not isinstance(base, Module):
            raise DtypeError(f"Adapters go into a loratk.nn.Module, found {type(base).__name__}.")
        if any(layer for _, _, layer in walk(base)):
            raise StateError(
                "This module has adapters in it already; add to its LoraModel with add_adapter(), or take them out with unload()."
            )
        self.base = base.freeze()
        self.registry = registry or default_registry()
        self.enabled = True
        self._configs: dict[str, LoraConfig] = {}
        self._owner, self._gate = Owner(), Gate()
        self._allowed: tuple[Any, dict[Any, Any]] = (None, {})

    @property
    def layers(self) -> dict[str, LoraLayer]:
        """The layers that have adapters, by name."""
        found: dict[int, tuple[str, LoraLayer]] = {}
        for name, _, layer in walk(self.base):
            if layer is not None:
                found.setdefault(id(layer), (name or ROOT, layer))
        return dict(found.values())

    @property
    def adapters(self) -> dict[str, LoraConfig]:
        """The config of each adapter, by its name."""
        return dict(self._configs)

    @property
    def active(self) -> dict[str, float]:
        """The active adapters and their weights."""
        return {name: weight for layer in self.layers.values() for name, weight in layer.active.items()}

    @property
    def merged(self) -> dict[str, float]:
        """The merged adapters and their weights; empty if none are."""
        return {name: weight for layer in self.layers.values() for name, weight in (layer.merged or {}).items()}

    @alone
    def add_adapter(
        self,
        name: str,
        config: LoraConfig,
        *,
        check_rank: bool = True,
        filled: bool = True,
        data: Iterable[Any] | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        """Add an adapter, which starts without effect and is not active yet. Raises ConfigError with every fault; all or nothing.

        An init that starts from data sees one pass over `data`, an iterable of batches x or (x, y), through the base alone in evaluation
        mode; one that starts from gradients also runs `loss(outputs, y)` backward, once a batch. The model keeps a config with the ranks
        that the init found. `filled` False leaves the config's init out, for values that come from a file.
        """
        check_adapter_name(name)
        if not isinstance(config, LoraConfig):
            raise DtypeError(
                f"The config of an adapter must be a LoraConfig, found {config!r}; LoraConfig.from_dict() makes one of a dict."
            )
        if name in self._configs:
            raise StateError(f"There is an adapter {name!r} already; remove_adapter() it first, or choose another name.")
        self._no_merge("add an adapter")
        base = modules(self.base)
        chosen = select(base, config, self.registry)
        if check_rank and (found := rank_faults(chosen, config)):
            raise ConfigError(faults("This config's rank is too high for some layers:", found))
        evidence: Mapping[str, Mapping[str, Any]] = {}
        if filled:
            if found := start_faults(chosen, config, self.registry.inits):
                raise ConfigError(faults("The config's init cannot start some layers:", found))
            config, chosen, evidence = prepare(self, config, chosen, data, loss)
        biased = biased_modules(base, {candidate.name for candidate, _ in chosen}, config, self.registry)
        wanted: dict[str, Sequence[str]] = {candidate.name: blocks for candidate, blocks in chosen}
        wanted |= {module: () for module in biased if module not in wanted}
        try:
            for module, blocks in wanted.items():
                layer = self._wrap(module, dict(base)[module])
                layer.add(
                    name, config, blocks=blocks, bias=module in biased, check_rank=False, evidence=evidence.get(module), filled=filled
                )
            tie(self, name, config)
        except BaseException:  # a plugin's method may raise anything
            self._remove(name)
            raise
        self._configs[name] = config

    def _wrap(self, name: str, inner: Module) -> LoraLayer:
        """The LoraLayer around a module of the base, put there if there is none."""
        layer = next(layer for _, module, layer in walk(self.base) if module is inner)
        if layer is None:
            layer = LoraLayer(inner, self.registry.layer_type(inner), name=name, registry=self.registry).train(self.training)
            layer.enabled = self.enabled
            layer.owner(self._owner)
            self.base = swap(self.base, inner, layer)
        return layer

    @alone
    def remove_adapter(self, name: str) -> None:
        """Forget an adapter. Raises UnknownNameError, or StateError while anything is merged."""
        self._check(name)
        self._no_merge("remove an adapter")
        self._remove(name)
        del self._configs[name]

    @alone
    def rename_adapter(self, old: str, new: str) -> None:
        """Give an adapter another name; it keeps its place, weight and values. Raises UnknownNameError, or StateError if it is taken."""
        self._check(old)
        check_adapter_name(new)
        if new in self._configs:
            raise StateError(f"There is an adapter {new!r} already; remove_adapter() it first, or choose another name.")
        for layer in self.layers.values():
            layer.rename(old, new)
        self._configs = {new if name == old else name: config for name, config in self._configs.items()}

    def changing(self) -> AbstractContextManager[None]:
        """A block in which this thread changes the model: it waits for the passes that run, and new ones wait for its end."""
        return self._gate.alone

    def replace_config(self, name: str, config: LoraConfig) -> None:
        """Note another config of an adapter, whose layers are as it says."""
        self._check(name)
        self._configs[name] = config

    def _remove(self, name: str) -> None:
        """Take an adapter out of all layers that have it, and unwrap those without any."""
        for layer in self.layers.values():
            if name in layer.names():
                layer.remove(name)
            if not layer.names():
                self.base = swap(self.base, layer, layer.base)

    @alone
    def set_active(self, active: Active) -> None:
        """Choose the active adapters: a name, names, or a mapping of names to weights (1 otherwise); none if empty."""
        weights = as_weights(active)
        self._check(*weights)
        self._no_merge("change the active adapters")
        for layer in self.layers.values():
            layer.activate({name: weight for name, weight in weights.items() if name in layer.names()})

    @alone
    def enable(self) -> None:
        """Let the active adapters act."""
        self.enabled = True
        for layer in self.layers.values():
            layer.enabled = True

    @alone
    def disable(self) -> None:
        """Compute what the base alone computes, to the last bit. Raises StateError while an adapter is merged."""
        self._no_merge("switch the adapters off")
        self.enabled = False
        for layer in self.layers.values():
            layer.enabled = False

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch the adapters off inside a `with` block."""
        before = self.enabled
        self.disable()
        try:
            yield
        finally:
            if before:
                self.enable()

    def _check(self, *names: str) -> None:
        for name in names:
            if name not in self._configs:
                raise UnknownNameError(f"There is no adapter {name!r}. Adapters: {choices(self._configs)}.")

    def _no_merge(self, what: str) -> None:
        if self.merged:
            raise StateError(f"Cannot {what} while {choices(self.merged)} is merged; unmerge() first.")

    # As data

    def state(self, adapter: str = "default") -> dict[str, np.ndarray]:
        """Copies of an adapter's arrays by name: `<layer>.lora_A` (d, r), `<layer>.lora_B` (r, k), and what its method has besides."""
        return {name: np.array(value.numpy()) for name, value in self._tensors(adapter).items()}

    def _tensors(self, adapter: str) -> dict[str, Parameter]:
        self._check(adapter)
        return {
            f"{name}.{key}": value
            for name, layer in self.layers.items()
            if adapter in layer.names()
            for key, value in layer.adapter(adapter).tensors().items()
        }

    @alone
    def load_state(self, state: Mapping[str, Any], adapter: str = "default") -> None:
        """Take over all arrays of an adapter. Raises FormatError, which lists every fault, and changes nothing then.

        Strict: each name must be there, none else, each array of the right shape and dtype, every value finite.
        """
        mine = self._tensors(adapter)
        arrays = {name: np.asarray(array) for name, array in state.items()}
        found = state_faults(mine, arrays, finite=True)
        for name, layer in self.layers.items() if not found else ():
            if adapter in layer.names():
                held = layer.adapter(adapter)
                values = {key: arrays[f"{name}.{key}"] for key in held.tensors()}
                found += [f"module {name!r}: {fault}" for fault in held.faults(values)]
        if found:
            raise FormatError(faults(f"This state does not fit the adapter {adapter!r} (nothing was loaded):", found))
        self._no_merge("load into an adapter")
        for name, parameter in mine.items():
            parameter.assign(arrays[name])
