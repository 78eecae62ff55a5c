"""A header that is read again is not parsed again, and what is read is always that of the file as it is now."""

import os
import threading

import numpy as np
import pytest
from test_safetensors import entry, opened, raw

from loratk import load_adapter, save_adapter
from loratk.errors import FormatError
from loratk.io import open_safetensors, safetensors, write_safetensors
from loratk.testing import format_states


@pytest.fixture(autouse=True)
def no_header_is_kept():
    safetensors._shared_header.cache_clear()


def parsed():
    """How many headers were parsed and kept, and how many were there already."""
    info = safetensors._shared_header.cache_info()
    return info.misses, info.hits


def test_all_formats_share_one_parse(tmp_path):
    path = tmp_path / "x.kohya.safetensors"
    save_adapter(path, format_states()["a linear layer"], format="kohya")
    load_adapter(path)
    misses, hits = parsed()
    assert misses == 1
    assert hits > 3


def test_a_file_that_was_replaced_never_gives_the_old_header(tmp_path):
    """Not even one of the same length, in the same file, at the same time."""
    path, data = tmp_path / "x.safetensors", np.arange(2, dtype=np.float32).tobytes()
    for shape in ((2, 1), (1, 2), (2, 1), (1, 2)):
        content = raw({"a": entry(shape=shape)}, data)
        path.write_bytes(content)
        os.utime(path, (1, 1))
        with open_safetensors(path) as reader:
            assert reader.shape("a") == shape
    path.write_bytes(content + b"x")
    with pytest.raises(FormatError, match="follow the last tensor"):
        opened(tmp_path, content + b"x")
    with pytest.raises(FormatError, match=r"other.safetensors' is not a sound"):
        _read(tmp_path / "other.safetensors", content[:-1])


def _read(path, content):
    path.write_bytes(content)
    with open_safetensors(path):
        pass


def test_readers_share_nothing_that_one_may_change(tmp_path):
    write_safetensors(tmp_path / "x", {"a": np.zeros(2)}, {"key": "text"})
    for _ in range(3):
        with open_safetensors(tmp_path / "x") as reader:
            assert reader.metadata == {"key": "text"}
            assert reader.names() == ["a"]
            reader.metadata["key"] = "other"
            reader.names().clear()


def test_few_headers_are_kept_and_no_long_one(tmp_path, monkeypatch):
    for number in range(5):
        write_safetensors(tmp_path / "x", {str(number): np.zeros(2)}, {})
        opened(tmp_path, (tmp_path / "x").read_bytes())
    assert safetensors._shared_header.cache_info().currsize == 2
    monkeypatch.setattr(safetensors, "SHARED", 10)
    before = parsed()
    opened(tmp_path, (tmp_path / "x").read_bytes())
    assert parsed() == before


def test_threads_that_read_several_files(tmp_path):
    for number in range(4):
        write_safetensors(tmp_path / str(number), {str(number): np.full(3, number, np.float32)}, {"number": str(number)})
    wrong = []

    def read(start):
        for turn in range(100):
            number = str((start + turn) % 4)
            with open_safetensors(tmp_path / number) as reader:
                if (reader.names(), reader.metadata, reader.array(number)[0]) != ([number], {"number": number}, int(number)):
                    wrong.append(number)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
