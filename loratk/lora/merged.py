"""The base of a model with adapters, and adapters folded into it."""

import numpy as np

from ..errors import StateError, choices
from ..nn import Module, Parameter
from .fingerprint import fingerprint
from .gate import alone
from .merging import folded_arrays, merge_layers
from .named import NamedAdapters
from .tree import own, swap, walk
from .weights import Active, as_weights


class MergeableAdapters(NamedAdapters):
    """Named adapters that can be merged into their base, until that is undone or for good. `LoraModel` is made of it."""

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
