"""loratk's own layout in each registered store as a format, and the table of all formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import FormatError, PluginError
from ..io.store import Store, StoreBase
from ..plugins import Registry
from .format import FEATURES, AdapterFormat, Reading, Request
from .own import FORMAT, list_adapters, read_adapters, write_adapters
from .state import AdapterState


class StoreFormat(AdapterFormat):
    """Adapters in loratk's own layout (docs/format.md) in one store; it carries everything."""

    own = True
    carries = dict.fromkeys(FEATURES, "yes") | {"bfloat16": "as float32, with a mark"}

    def __init__(self, store: Store) -> None:
        self.store = store
        self.name = store.name  # type: ignore[misc]
        self.title = f"loratk adapters, {store.name}"  # type: ignore[misc]
        self.suffixes = store.suffixes  # type: ignore[misc]
        self.options = getattr(store, "options", {})  # type: ignore[misc]
        self._stores = {store.name: store}

    def detect(self, path: Path) -> str | None:
        """Whether the file has the string that marks loratk's layout."""
        if path.is_dir() or not self.store.sniff(path):
            return None
        try:
            with self.store.open(path) as reader:
                return f"its string 'format' is {FORMAT!r}" if reader.strings.get("format") == FORMAT else None
        except FormatError:
            return None

    def adapters(self, path: Path) -> list[str]:
        """The names in the file."""
        return list_adapters(path, stores=self._stores, store=self.name)

    def read(self, path: Path, request: Request) -> Reading:
        """The adapters, checked as a whole but for values that are not finite."""
        return Reading(read_adapters(path, stores=self._stores, store=self.name, names=request.adapters, finite=False))

    def write(self, path: Path, states: Sequence[AdapterState], request: Request) -> list[str]:
        """Write the states as they are."""
        store = self.store.configured(request.options) if isinstance(self.store, StoreBase) else self.store
        write_adapters(path, states, stores={self.name: store}, store=self.name)
        return []


def formats_of(registry: Registry) -> dict[str, AdapterFormat]:
    """All formats by name: those that plugins register, and loratk's own layout under the name of each store. A clash is refused."""
    formats: dict[str, AdapterFormat] = {name: StoreFormat(store) for name, store in registry.stores.items()}
    for name in formats.keys() & registry.formats.keys():
        owners = registry.owners.get(("store", name)), registry.owners.get(("format", name))
        raise PluginError(
            f"The plugin {owners[0]!r} registers a store and {owners[1]!r} a format named {name!r}; a store is a format of that name. "
            "Leave one out (without=, --without) or uninstall it."
        )
    return dict(sorted((formats | registry.formats).items()))
