"""A base model with adapters: put in by pattern, switched, weighted, merged, saved, and taken out again."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DtypeError, FormatError, StateError, UnknownNameError, choices, faults
from ..exchange import AdapterState
from ..nn import MLP, Buffer, Module, Parameter, Sequential
from ..nn.containers import interleave
from ..nn.state import state_faults
from ..nn.version import version
from ..plugins import Registry, default_registry
from . import files
from .chain import pretrained_layers
from .config import LoraConfig
from .control import Controller
from .fingerprint import fingerprint
from .gate import Gate, alone
from .hotswap import hot_swap
from .layer import LoraLayer, check_adapter_name
from .max_norm import max_norm
from .merging import folded_arrays, merge_layers
from .parts import parts_of
from .placing import biased_modules, rank_faults
from .report import Summary, summarize
from .resizing import Ranks, compact, resize, use_rank
from .selection import Owner, Selected, Selection, selection, using
from .sharing import tie
from .starting import prepare, start_faults
from .status import ModelStatus, model_status
from .targets import Choice, explain, find_candidates, select
from .tree import ROOT, modules, own, swap, walk
from .weights import Active, as_weights


class _Active:
    """What stands for the active adapters where a call selects none."""

    def __repr__(self) -> str:
        return "the active adapters"


ACTIVE: Any = _Active()


class LoraModel(Module):
    """Any module tree with adapters in it.

    `base` is the module that was handed in, frozen, with a LoraLayer around each layer that has an adapter. All names
    are those of the base without adapters: `encoder.0.fc`. A base that is a single layer itself goes by the name `root`.
    A module that stands at several places has one adapter for all, under the first of its names.
    """

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

    # Making one

    @classmethod
    def adapt(
        cls,
        module: Module,
        config: LoraConfig,
        *,
        adapter: str = "default",
        data: Iterable[Any] | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
        registry: Registry | None = None,
    ) -> "LoraModel":
        """Freeze any module and give it an adapter, active. Changes the module itself: its layers are wrapped, until `unload`.

        `data` and `loss` are for inits that start from data, see `add_adapter`. Raises ConfigError, listing each pattern that matches
        nothing and each layer whose rank is too high; the module is then as it was, but frozen.
        """
        model = cls(module, registry=registry)
        model.add_adapter(adapter, config, data=data, loss=loss)
        model.set_active(adapter)
        return model

    @classmethod
    def from_sizes(
        cls,
        sizes: Sequence[int],
        config: LoraConfig,
        *,
        activation: str = "relu",
        output_activation: bool = False,
        bias: bool = True,
        rng: np.random.Generator | int = 0,
        dtype: Any = np.float32,
    ) -> "LoraModel":
        """A chain of linear layers of the given sizes, random, with an activation between them (and after the last if asked)."""
        base = MLP(sizes, activation=activation, output_activation=output_activation, bias=bias, rng=rng, dtype=dtype)
        return cls.adapt(base, config)

    @classmethod
    def from_pretrained(
        cls,
        weights: Sequence[Any],
        biases: Sequence[Any | None] | None,
        config: LoraConfig,
        *,
        activation: str = "relu",
        output_activation: bool = False,
    ) -> "LoraModel":
        """A chain of linear layers with copies of weights (d, k) and biases (k,); None for all biases, or one, means without.

        Raises ConfigError, which lists every fault: weights that do not follow on each other, biases that do not fit.
        """
        layers = interleave(pretrained_layers(weights, biases), activation, output_activation)
        return cls.adapt(Sequential(*layers), config)

    @staticmethod
    def explain(module: Module, config: LoraConfig, *, registry: Registry | None = None) -> list[Choice]:
        """A dry run: for each layer that could have an adapter whether this config gives it one, and which pattern says so."""
        return explain(find_candidates(modules(module), registry or default_registry()), config)

    # Adapters

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

    def hot_swap(self, name: str, source: str | Path | AdapterState, **how: Any) -> None:
        """Give an adapter the arrays, rank and settings of one in a file or state, in place; see `loratk.lora.hotswap.hot_swap`."""
        hot_swap(self, name, source, **how)

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

    def forward(self, *args: Any, adapter: Selected = ACTIVE, **kwargs: Any) -> Any:
        """What the base computes, with the active adapters, or those that `adapter` selects for this call.

        `adapter`: a name; a dict of names and weights; None for the base alone; or a list with one of these for each row of the batch
        (`PerRow` says more). Calls in other threads do not see it, and nothing is left changed. Raises UnknownNameError, StateError
        while an adapter is merged or the adapters are switched off, and ShapeError where a layer does not have the rows on axis 0.
        """
        with self._gate:
            if adapter is ACTIVE:
                return self.base(*args, **kwargs)
            with using(self._owner, self._selection(adapter)):
                return self.base(*args, **kwargs)

    @contextlib.contextmanager
    def using(self, adapter: Selected) -> Iterator[None]:
        """Within the block, in this thread, calls use these adapters where they select none themselves: for code that passes none on."""
        with self._gate:
            chosen = self._selection(adapter)
        with using(self._owner, chosen):
            yield

    def _selection(self, adapter: Selected) -> Selection:
        """A selection that the model can follow now; what is found of names holds for as long as nothing is changed."""
        now, allowed = self._allowed
        if now is not version.now:
            now = version.now  # before anything is asked
            if not self.enabled:
                raise StateError("Cannot select adapters for a call while they are switched off; enable() first.")
            self._no_merge("select adapters for a call")
            allowed = {}
            vars(self)["_allowed"] = now, allowed  # not set as an attribute, which would change the version
        chosen = selection(adapter)
        if not allowed.keys() >= chosen.names:
            self._check(*chosen.names)
            allowed.update(dict.fromkeys(chosen.names))
        return chosen

    def _check(self, *names: str) -> None:
        for name in names:
            if name not in self._configs:
                raise UnknownNameError(f"There is no adapter {name!r}. Adapters: {choices(self._configs)}.")

    def _no_merge(self, what: str) -> None:
        if self.merged:
            raise StateError(f"Cannot {what} while {choices(self.merged)} is merged; unmerge() first.")

    # Ranks

    @alone
    def compact(self, adapter: str = "default") -> Ranks:
        """Cut the ranks that training switched off (AdaLoRA's lambdas, SoRA's gates, what `elastic` does not use): the update stays.

        A layer that is left with rank 0 loses the adapter. Ranks, alphas (the scaling stays) and exclusions go into the config by exact
        names, so that a file of it is smaller too. Optimisers and controllers made before refuse what has changed: make new ones. Raises
        StateError if nothing would be left, or anything is merged.
        """
        self._check(adapter)
        return compact(self, adapter)

    @alone
    def resize(self, adapter: str = "default", *, rank: int | None = None, energy: float | None = None) -> Ranks:
        """Give every layer the best update of at most that `rank`, or of the least rank that keeps the share `energy` of its squared norm.

        By singular values, in factor space; of DyLoRA the first ranks. A rank above a layer's own adds random columns of A and zero rows of
        B, which can train, up to min(d, k). LoRA and DoRA stay what they are, every other method with factors becomes plain LoRA; with
        neither rank nor energy that is all, and exact. What `compact` says of config, optimisers and errors holds here too. Raises
        ConfigError that lists the layers whose method has no factors.
        """
        self._check(adapter)
        return resize(self, adapter, rank=rank, energy=energy)

    @alone
    def use_rank(self, adapter: str = "default", rank: int | None = None) -> None:
        """Let the first `rank` ranks of an adapter alone act, None for all, wherever it computes, merges or is saved. For DyLoRA.

        Layers of a smaller rank use all of theirs. Training goes on drawing ranks as before. Raises ConfigError for a method whose first
        ranks are no adapter by themselves (`resize` cuts those), StateError while anything is merged.
        """
        self._check(adapter)
        self._no_merge("choose a rank")
        use_rank(self, adapter, rank)

    # What trains

    def trainable(self) -> list[Parameter]:
        """The parameters of the active adapters, and those of the base if it is not frozen: what an optimiser takes.

        While an adapter is merged, none acts by itself, and none is among them.
        """
        active = [layer.adapter(name) for layer in self.layers.values() if layer.merged is None for name in layer.active]
        found = [*self.base_parameters().values(), *(p for adapter in active for p in adapter.parameters())]
        return list({id(parameter): parameter for parameter in found if parameter.requires_grad}.values())

    def controllers(self, steps: int | None = None) -> list[Controller]:
        """What the methods of the active adapters do around the steps of training. A Trainer asks for them by itself."""
        found = []
        for name in self.active:
            methods = {part.adapter.method.name: part.adapter.method for part in parts_of(self, name)}
            made = [method.controller(self, name, steps) for method in methods.values()]
            found += [controller for controller in (*made, max_norm(self, name)) if controller is not None]
        return found

    def freeze_base(self) -> None:
        """Freeze the base (it is from the start)."""
        for parameter in self.base_parameters().values():
            parameter.freeze()

    def unfreeze_base(self) -> None:
        """Let the base train too. Raises StateError while an adapter is merged."""
        self._no_merge("unfreeze the base")
        for parameter in self.base_parameters().values():
            if not isinstance(parameter, Buffer):
                parameter.unfreeze()

    def base_parameters(self) -> dict[str, Parameter]:
        """The parameters and buffers of the base by the names they have without adapters."""
        return {f"{name}.{key}" if name else key: value for name, module, _ in walk(self.base) for key, value in own(module)}

    def base_state(self) -> dict[str, np.ndarray]:
        """Copies of the base's arrays by the names they have without adapters; those from before merging, if any is merged."""
        originals: dict[int, np.ndarray] = {}
        for layer in self.layers.values():
            originals |= layer.originals()
        return {name: np.array(originals[id(p)] if id(p) in originals else p.numpy()) for name, p in self.base_parameters().items()}

    def fingerprint(self) -> str:
        """SHA-256 of the base: names, dtypes, shapes and bytes of its arrays. Adapters, merged or not, do not change it."""
        return fingerprint(self.base_state())

    # Merging

    @alone
    def merge(self, active: Active | None = None) -> None:
        """Fold adapters (the active ones if none are named) into the base's weights, until `unmerge`.

        What is not merged does not act meanwhile. All or nothing: raises StateError if anything is merged already, the
        adapters are switched off, a weight also serves another module, or a merged weight would not be finite.
        """
        weights = self.active if active is None else as_weights(active)
        self._check(*weights)
        if self.merged:
            raise StateError(f"{choices(self.merged)} is merged already; merging again would count it twice. unmerge() first.")
        if not weights:
            raise StateError("There is nothing to merge: no adapter is active, and none was named.")
        if not self.enabled:
            raise StateError("Cannot merge while the adapters are switched off; enable() first.")
        merge_layers(self.base, self.layers, weights)

    @alone
    def unmerge(self) -> None:
        """Put the base's original arrays back, the very same bits. Raises StateError if nothing is merged."""
        if not self.merged:
            raise StateError("Nothing is merged.")
        for layer in self.layers.values():
            if layer.merged is not None:
                layer.unmerge()

    def merged_state(self, active: Active | None = None) -> dict[str, np.ndarray]:
        """The base's arrays with adapters (the active ones if none are named) folded in; the model stays as it is.

        A weight that serves two modules is folded under the names of the one with the adapter only.
        """
        weights = self.active if active is None else as_weights(active)
        self._check(*weights)
        if self.merged:
            raise StateError(f"{choices(self.merged)} is merged already: base_parameters() are the merged arrays. unmerge() first.")
        return self.base_state() | folded_arrays(self.base, self.layers, weights)

    def unload(self) -> Module:
        """Take all adapters out and return the base, as it was before them. Raises StateError while an adapter is merged."""
        if self.merged:
            raise StateError(f"{choices(self.merged)} is merged; unmerge() first, or use merge_and_unload() to keep it.")
        return self._strip()

    def merge_and_unload(self, active: Active | None = None) -> Module:
        """Merge (the active adapters if none are named) for good and return the base as a plain module."""
        if active is not None or not self.merged:
            self.merge(active)
        return self._strip()

    @alone
    def _strip(self) -> Module:
        for layer in self.layers.values():
            self.base = swap(self.base, layer, layer.base)
        self._configs.clear()
        return self.base

    # Reports

    def status(self) -> ModelStatus:
        """What is in the model now, as data: adapters, layers, what acts, and where layers differ that should not."""
        return model_status(self)

    def summary(self) -> Summary:
        """Layers, ranks and counts: print it, or hand it to a rich console for a table."""
        return summarize(self)

    def count(self, *, trainable: bool = False) -> int:
        """Numbers in the base's parameters and all adapters; with `trainable`, those that train now."""
        return sum(parameter.size for parameter in (self.trainable() if trainable else self.parameters()))

    def reduction(self) -> float:
        """1 - trainable / base: the share of what full fine-tuning would train that does not train."""
        return self.summary().reduction

    # Adapters as data

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

    def save(
        self,
        path: str | Path,
        *,
        adapters: Sequence[str] | str | None = None,
        metadata: Mapping[str, str] | None = None,
        format: str | None = None,
        rename: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Write adapters (a name, names, or all) to one file or folder of any format; see `loratk.lora.files.save`, which returns notes."""
        files.save(self, path, adapters=adapters, metadata=metadata, format=format, rename=rename, options=options)

    def load(self, path: str | Path, *, adapters: Sequence[str] | str | None = None, check_base: bool = True, **how: Any) -> list[str]:
        """Add adapters of a file or folder of any format (a name, names, or all), not active yet; see `loratk.lora.files.load`."""
        return files.load(self, path, adapters=adapters, check_base=check_base, **how)

    @classmethod
    def from_file(
        cls, module: Module, path: str | Path, *, check_base: bool = True, registry: Registry | None = None, **how: Any
    ) -> "LoraModel":
        """Freeze a module and give it the adapters of a file or folder of any format, all active; arguments as for `load`."""
        model = cls(module, registry=registry)
        model.set_active(model.load(path, check_base=check_base, **how))
        return model
