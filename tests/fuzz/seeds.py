"""Sound files of every format to begin with: what its own writer makes of several adapters, variants of it, and what lies in tests/data."""

import io
import tempfile
import zipfile
from pathlib import Path

import h5py
import numpy as np

from loratk.errors import LoratkError
from loratk.exchange import AdapterState, save_adapter
from loratk.io import open_safetensors, write_safetensors
from tests.asked import TO_WRITE, Q, V

Case = dict[str, bytes]
"""The files of an input by their names in its folder; of a single file the name is ""."""

DATA = Path(__file__).parents[1] / "data"
LARGEST = 1 << 16


def cases(format, folder: Path, registry) -> list[Case]:
    """The seeds of a format."""
    found = []
    for number, states in enumerate(samples()):
        path = folder / f"{format.name}-{number}{'' if format.folder else '.bin'}"
        try:
            save_adapter(path, states, format=format.name, options=TO_WRITE.get(format.name), registry=registry)
        except LoratkError:  # what this format cannot hold
            continue
        found.append(taken(path))
    for path in sorted(DATA.iterdir()) if DATA.is_dir() else ():
        for candidate in (path, *(sorted(path.iterdir()) if path.is_dir() else ())):
            mine = (candidate.is_file() and candidate.stem == format.name) or format.detect(
                candidate
            ) is not None  # a pickle is claimed by none
            if mine and candidate.suffix not in (".py", ".md"):
                found.append(taken(candidate))
    found += [variant for case in found for variant in variants(case)]
    return [case for case in found if sum(map(len, case.values())) <= LARGEST] or found


def taken(path: Path) -> Case:
    if not path.is_dir():
        return {"": path.read_bytes()}
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def samples() -> list[list[AdapterState]]:
    """Adapters of many kinds, each small."""
    random = np.random.default_rng(0)

    def draw(*shape):
        return random.standard_normal(shape).astype(np.float32)

    def linear(d=6, k=4, rank=2, alpha=4.0, **more):
        record = {"method": "lora", "layer_type": "linear", "shape": [d, k], "rank": rank, "alpha": alpha, "scaling": alpha / rank}
        return record | more, {"lora_A": draw(d, rank), "lora_B": draw(rank, k)}

    def state(name="default", **modules):
        tensors = {f"{module}.{key}": array for module, (_, held) in modules.items() for key, array in held.items()}
        return AdapterState(name, {}, tensors, {module: record for module, (record, _) in modules.items()}, metadata={"note": "x"})

    conv, held = linear(18, 4, layer_type="conv2d", kernel=[3, 3])
    dora, magnitude = linear(method="dora")
    table, rows = linear(10, 4, layer_type="embedding")
    half, halves = linear(dtypes={"lora_A": "bfloat16", "lora_B": "bfloat16"})
    halves = {key: (array.view(np.uint32) & 0xFFFF0000).view(np.float32) for key, array in halves.items()}
    plain = state(**{Q: linear(), V: linear()})
    return [
        [plain],
        [AdapterState(plain.name, {}, plain.tensors, plain.modules)],
        [state(**{Q: linear(), V: linear(rank=1, alpha=3.0)})],
        [state(**{"unet.down.0.conv1": (conv, held)})],
        [state(**{Q: (dora, magnitude | {"magnitude": np.abs(draw(4))})})],
        [state(**{"model.embed_tokens": (table, rows)})],
        [state(**{Q: (half, halves)})],
        [state("a", **{Q: linear()}), state("b", **{V: linear()})],
        [state(**{"unet.mid.attn.to_q": linear(), "text_encoder.layers.0.q_proj": linear()})],
    ]


def variants(case: Case) -> list[Case]:
    """The same, as other programs may have written it: without a seal, packed, in other layouts."""
    data = case.get("", b"")
    if data.startswith(b"\x89HDF"):
        return [{"": _hdf5(data, libver, options)} for libver, options in _LAYOUTS]
    if data.startswith(b"PK\3\4"):
        made = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
            for info in old.infolist():
                new.writestr(info.filename, old.read(info).replace(b'"sealed": true', b'"sealed": false'))
        return [{"": made.getvalue()}]
    if data[8:9] == b"{":  # fixtures may hold what they should give beside the tensors of their format
        tensors, metadata, bfloat16 = _opened(data)
        plain = {name: array for name, array in tensors.items() if name.split(".")[0] not in ("want", "base")}
        if len(plain) < len(tensors):
            return [{"": _packed(plain, metadata, bfloat16)}]
    return []


_LAYOUTS = [("earliest", {}), ("earliest", {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True}), ("latest", {})]


def _hdf5(data: bytes, libver: str, options: dict) -> bytes:
    file = io.BytesIO()
    with h5py.File(io.BytesIO(data), "r") as old, h5py.File(file, "w", libver=libver) as new:

        def copy(name, item):
            if isinstance(item, h5py.Dataset):
                made = new.create_dataset(name, data=item[()], **(options if item.shape and item.size else {}))
                made.attrs.update(item.attrs)
            else:
                new.require_group(name).attrs.update(item.attrs)

        new.attrs.update({key: value for key, value in old.attrs.items() if not key.startswith("__loratk")})
        old.visititems(copy)
    return file.getvalue()


def _opened(data: bytes):
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with open_safetensors(file.name) as reader:
            names = reader.names()
            return {name: reader.array(name) for name in names}, reader.metadata, [name for name in names if reader.dtype(name) == "BF16"]


def _packed(tensors, metadata, bfloat16) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(Path(folder) / "x", tensors, metadata, set(bfloat16) & set(tensors))
        return (Path(folder) / "x").read_bytes()
