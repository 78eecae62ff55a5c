"""Files as torch.save writes them, assembled by hand: for tests that have no torch, and for files that torch would never write."""

import io
import struct
import zipfile

import numpy as np

STORAGES = {"float16": "Half", "float32": "Float", "float64": "Double", "int64": "Long", "bfloat16": "BFloat16", "uint8": "Byte"}


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    size = (value.bit_length() + 8) // 8
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def name(module, attribute):
    return b"c" + f"{module}\n{attribute}\n".encode()


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def storage(key, dtype, length):
    kind = name("torch", f"{STORAGES.get(dtype, dtype)}Storage")
    return tuple_of(text("storage"), kind, text(key), text("cpu"), number(length)) + b"Q"


def tensor(key, dtype, length, shape, strides=None, offset=0):
    """The opcodes of a tensor; contiguous if no strides are given."""
    if strides is None:
        strides = [int(np.prod(shape[at + 1 :])) for at in range(len(shape))]
    sizes = (tuple_of(*map(number, part)) for part in (shape, strides))
    hooks = name("collections", "OrderedDict") + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + tuple_of(storage(key, dtype, length), number(offset), *sizes, b"\x89", hooks) + b"R"


def dict_of(items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def archive(pickle, storages, *, root="archive", more=None, compression=zipfile.ZIP_STORED):
    """The bytes of a file: a pickle, and the bytes of each storage by key."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        file.writestr(f"{root}/data.pkl", pickle)
        file.writestr(f"{root}/byteorder", "little")
        for key, raw in storages.items():
            file.writestr(f"{root}/data/{key}", raw)
        for key, raw in (more or {}).items():
            file.writestr(key, raw)
    return out.getvalue()


def saved(tensors, bfloat16=()):
    """The bytes of a file of a dict of arrays; those named in `bfloat16` are cut to it."""
    items, storages = {}, {}
    for at, (key, array) in enumerate(tensors.items()):
        array = np.asarray(array)
        dtype = "bfloat16" if key in bfloat16 else array.dtype.name
        raw = (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype("<u2") if key in bfloat16 else array
        items[key] = tensor(str(at), dtype, array.size, array.shape)
        storages[str(at)] = raw.tobytes()
    return archive(b"\x80\x02" + dict_of(items) + b".", storages)
