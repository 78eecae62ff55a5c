"""The base model's weights in a file, or a folder of them: names, shapes, and one weight at a time as the matrix it acts as."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import ConfigError, FormatError, StoreError, UnknownNameError, choices
from ..io import strict_json
from ..io.find import find_store
from ..io.lazy import LazyArrays
from ..io.store import Reader, Store, view
from .conv1d import conv1d_modules
from .format import Base
from .own import FORMAT

ORDERS = ("input-first", "output-first")
INDEX = ".safetensors.index.json"
EMBEDDINGS = {
    "embed_positions", "embed_tokens", "position_embedding", "position_embeddings", "tok_embeddings", "token_embedding",
    "token_type_embeddings", "word_embeddings", "wpe", "wte",
}  # fmt: skip
"""Last parts of module paths whose two-axis weight is a look-up table, input first in every framework."""


class Checkpoint:
    """Weights in one or several files of a store, read one at a time. Close it, or use it in a `with` block.

    `order` says how a weight of several axes lies in the file: "output-first", as torch keeps it (out, in, ...), or "input-first", as
    loratk and Keras keep it (..., in, out). If None, safetensors are taken as output first, unless their metadata says that loratk,
    TensorFlow or Flax wrote them, and other stores as input first. `input_first`: the modules that lie input first all the same, as
    their biases show. `note` says what was taken, and why.
    """

    def __init__(self, path: str | Path, stores: Mapping[str, Store], order: str | None = None) -> None:
        if order not in (None, *ORDERS):
            raise ConfigError(f"the order of a base's axes must be one of {choices(ORDERS)}, found {order!r}")
        self.used = False  # whether anything was asked of it
        self._path = Path(path)
        self._stack = ExitStack()
        self._readers: dict[Path, Reader] = {}
        self._stores = stores
        try:
            self._where = self._collect()
            self.order, why = (order, "as asked") if order else self._guess()
        except BaseException:
            self.close()
            raise
        if self._where and all("lora" in name.lower() for name in self._where):
            self.close()
            raise FormatError(f"the base '{self.path}' holds nothing but an adapter's factors; the base is what the adapter was trained on")
        self._weights = dict(self._find_weights())
        self.input_first = self._conv1d() if order is None and self.order == "output-first" else frozenset[str]()
        self.note = f"the base's weights are taken {self.order.replace('-', ' ')}: {why}"
        if self.input_first:
            self.note += f"; {len(self.input_first)} as Conv1D of transformers, input first, such as {min(self.input_first)!r}"

    @property
    def path(self) -> str:
        """Where they are."""
        return str(self._path)

    def modules(self) -> list[str]:
        """The dotted path of every module that has a weight."""
        self.used = True
        return list(self._weights)

    def shape(self, module: str) -> tuple[int, ...]:
        """The shape of a module's weight as it is stored, without loading it."""
        name = self._name(module)
        return self._readers[self._where[name]].info(name)[0]

    def weight(self, module: str) -> np.ndarray:
        """A module's weight as it acts: (d, k), input first, float32 or float64. Of a convolution d counts (window, channels).

        It may be a read-only view on the file: copy it before changing it.
        """
        name = self._name(module)
        array = view(self._readers[self._where[name]], name)
        if array.dtype.kind != "f" or array.ndim < 2:
            raise FormatError(
                f"'{self.path}': {name!r} must be floating-point numbers of at least two axes, found {array.dtype} {array.shape}"
            )
        array = array.astype(np.result_type(array.dtype, np.float32), copy=False)
        array = input_first(array, module) if self.order == "output-first" and module not in self.input_first else array
        return np.ascontiguousarray(array).reshape(-1, array.shape[-1])

    def bias(self, module: str) -> np.ndarray | None:
        """A module's bias (k,), float32 or float64; None where it has none."""
        name = _bias(self._weights.get(module, f"{module}.weight"))
        if name not in self._where:
            return None
        array = self._readers[self._where[name]].array(name)
        if array.dtype.kind != "f" or array.ndim != 1:
            raise FormatError(f"'{self.path}': {name!r} must be floating-point numbers of one axis, found {array.dtype} {array.shape}")
        return array.astype(np.result_type(array.dtype, np.float32), copy=False)

    def arrays(self) -> LazyArrays:
        """Every array as it is stored, loaded when it is asked for."""
        infos = {name: self._readers[file].info(name) for name, file in self._where.items()}
        return LazyArrays(infos, lambda name: self._readers[self._where[name]].array(name))

    @property
    def strings(self) -> dict[str, str]:
        """The strings of its files; of several with one name that of the first."""
        return {key: text for reader in reversed(self._readers.values()) for key, text in reader.strings.items()}

    @property
    def bfloat16(self) -> frozenset[str]:
        """The arrays that are stored as bfloat16, and read as float32."""
        return frozenset(name for reader in self._readers.values() for name in getattr(reader, "bfloat16", ()))

    def files(self) -> dict[Path, tuple[list[str], dict[str, str]]]:
        """The names of the arrays in each of its files, and the file's strings."""
        return {path: (reader.names(), dict(reader.strings)) for path, reader in self._readers.items()}

    def place(self, name: str) -> tuple[int, int, int] | None:
        """Where the bytes of an array lie as they are: descriptor of an open file, first place, end. None where the store cannot tell."""
        reader = self._readers[self._where[name]]
        return reader.place(name) if hasattr(reader, "place") else None

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _name(self, module: str) -> str:
        self.used = True
        if module not in self._weights:
            near = difflib.get_close_matches(module, self._weights, 3, 0.6) or list(self._weights)[:3]
            raise UnknownNameError(f"the base '{self.path}' has no module {module!r} with a weight; near to it are {choices(near)}")
        return self._weights[module]

    def _open(self, path: Path) -> Reader:
        if path not in self._readers:
            self._readers[path] = self._stack.enter_context(find_store(path, self._stores).open(path))
        return self._readers[path]

    def _collect(self) -> dict[str, Path]:
        """Which file each array is in."""
        if not self._path.is_dir() and not self._path.name.endswith(INDEX):
            reader = self._open(self._path)
            if reader.strings.get("format") == FORMAT:
                raise FormatError(
                    f"'{self.path}' is an adapter file, not the weights of a base model; the base is what the adapter was trained on."
                )
            return dict.fromkeys(reader.names(), self._path)
        found: dict[str, Path] = {}
        for file in self._shards():
            for name in self._open(file).names():
                if name in found:
                    raise FormatError(f"the base '{self.path}' has {name!r} twice, in '{found[name].name}' and '{file.name}'")
                found[name] = file
        return found

    def _shards(self) -> list[Path]:
        """The files that the index of a folder names, or the one file of weights in it."""
        folder = self._path if self._path.is_dir() else self._path.parent
        indexes = [self._path] if folder != self._path else sorted(folder.glob(f"*{INDEX}"))
        if len(indexes) == 1:
            return [folder / name for name in _indexed(indexes[0])]
        files = sorted(file for store in self._stores.values() for end in store.suffixes for file in folder.glob(f"*{end}"))
        if len(files) != 1 or indexes:
            names = choices(file.name for file in (indexes or files))
            raise StoreError(f"cannot tell which files of the folder '{folder}' are the base, found {names}; give one of them as the base")
        return files

    def _guess(self) -> tuple[str, str]:
        reader = next(iter(self._readers.values()))
        store = find_store(next(iter(self._readers)), self._stores).name
        if store != "safetensors":
            return "input-first", f"the order of loratk and Keras, whose store {store!r} is"
        if (kind := reader.strings.get("format")) in ("tf", "flax", "np"):
            return "input-first", f"its metadata says that its format is {kind!r}"
        return "output-first", "the order of torch, whose files safetensors mostly are"

    def _conv1d(self) -> frozenset[str]:
        shapes, biases = {}, {}
        for module, name in self._weights.items():
            shapes[module] = self._readers[self._where[name]].info(name)[0]
            if (bias := _bias(name)) in self._where:
                biases[module] = self._readers[self._where[bias]].info(bias)[0]
        return conv1d_modules(shapes, biases)

    def _find_weights(self) -> Iterator[tuple[str, str]]:
        for name in sorted(self._where):
            module, _, last = name.rpartition(".")
            if last == "weight":
                yield module or "root", name
            elif name.endswith("/vars/0"):  # Keras weights: the kernel is a layer's first variable
                yield name.removesuffix("/vars/0").replace("/", "."), name


def input_first(array: np.ndarray, module: str = "") -> np.ndarray:
    """A view of an output-first weight with the output last: (out, in, ...) -> (..., in, out). A look-up table stays as it is."""
    if array.ndim < 2 or (array.ndim == 2 and module.rpartition(".")[2] in EMBEDDINGS):
        return array
    return array.transpose(*range(2, array.ndim), 1, 0)


def _bias(weight: str) -> str:
    """The name of the bias beside a weight."""
    return f"{weight.removesuffix('/vars/0')}/vars/1" if weight.endswith("/vars/0") else f"{weight.removesuffix('weight')}bias"


def _indexed(path: Path) -> list[str]:
    """The files an index names, which lie beside it."""
    try:
        files = sorted(set(strict_json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except OSError as error:
        raise StoreError(f"cannot read '{path}': {error.strerror or error}; check the path and its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"'{path}' is no index of weights: it needs a 'weight_map' of names to files ({error})") from error
    if bad := [name for name in files if not isinstance(name, str) or Path(name).name != name or not (path.parent / name).is_file()]:
        raise FormatError(f"the index '{path}' names {', '.join(map(repr, bad))}; its files must lie beside it")
    if not files:
        raise FormatError(f"the index '{path}' names no file; get a new copy of it")
    return files


@contextmanager
def opened_base(base: str | Path | Base | None, stores: Mapping[str, Store], order: str | None = None) -> Iterator[Any]:
    """A base given as a path, opened while the block runs; None, or a base that is open already, as it is."""
    if isinstance(base, str | Path):
        with Checkpoint(base, stores, order) as opened:
            yield opened
    else:
        yield base
