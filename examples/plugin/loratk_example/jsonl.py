"""Adapters as JSON lines: one line an array or a string, which any language reads."""

import base64
import json
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from loratk.io import Contents, StoreBase


class JsonLinesStore(StoreBase):
    """A first line that names the format, one line for each array and string, and a last one with their number.

    Arrays are base64 of their bytes, little-endian in C order, so they come back to the last bit.
    """

    name, suffixes, magic = "jsonl", (".lora.jsonl",), b'{"format": "loratk-jsonl"'

    def save(self, file: BinaryIO, arrays: Mapping[str, np.ndarray], strings: Mapping[str, str]) -> None:
        """Write line by line."""
        file.write(self.magic + b"}\n")
        for name, array in arrays.items():
            little = np.asarray(array, array.dtype.newbyteorder("<"))
            data = base64.b64encode(little.tobytes()).decode()
            self._line(file, {"array": name, "dtype": little.dtype.str, "shape": array.shape, "data": data})
        for name, value in strings.items():
            self._line(file, {"string": name, "value": value})
        self._line(file, {"end": len(arrays) + len(strings)})

    def load(self, file: BinaryIO) -> Contents:
        """Whatever goes wrong here becomes a FormatError that quotes it."""
        _, *lines, last = [json.loads(line) for line in file.read().splitlines()]
        if last != {"end": len(lines)}:
            raise ValueError("the last line does not give the number of lines before it")
        contents = Contents({}, {})
        for line in lines:
            if "array" in line:
                values = np.frombuffer(base64.b64decode(line["data"], validate=True), line["dtype"])
                contents.arrays[line["array"]] = values.reshape(line["shape"]).astype(values.dtype.newbyteorder("="))
            else:
                contents.strings[line["string"]] = line["value"]
        return contents

    def _line(self, file: BinaryIO, line: object) -> None:
        file.write(json.dumps(line).encode() + b"\n")
