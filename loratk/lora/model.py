"""A base model with adapters: put in by pattern, switched, weighted, merged, saved, and taken out again."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StateError
from ..exchange import AdapterState
from ..nn import MLP, Buffer, Module, Parameter, Sequential
from ..nn.containers import interleave
from ..nn.version import version
from ..plugins import Registry, default_registry
from . import files
from .chain import pretrained_layers
from .config import LoraConfig
from .control import Controller
from .gate import alone
from .hotswap import hot_swap
from .max_norm import max_norm
from .merged import MergeableAdapters
from .parts import parts_of
from .report import Summary, summarize
from .resizing import Ranks, compact, resize, use_rank
from .selection import Selected, Selection, selection, using
from .status import ModelStatus, model_status
from .targets import Choice, explain, find_candidates
from .tree import modules


class _Active:
    """What stands for the active adapters where a call selects none."""

    def __repr__(self) -> str:
        return "the active adapters"


ACTIVE: Any = _Active()


class LoraModel(MergeableAdapters):
    """Any module tree with adapters in it.

    `base` is the module that was handed in, frozen, with a LoraLayer around each layer that has an adapter. All names
    are those of the base without adapters: `encoder.0.fc`. A base that is a single layer itself goes by the name `root`.
    A module that stands at several places has one adapter for all, under the first of its names.
    """

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

    # Calls

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

    # Files

    def hot_swap(self, name: str, source: str | Path | AdapterState, **how: Any) -> None:
        """Give an adapter the arrays, rank and settings of one in a file or state, in place; see `loratk.lora.hotswap.hot_swap`."""
        hot_swap(self, name, source, **how)

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
