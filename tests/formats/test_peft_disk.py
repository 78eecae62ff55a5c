"""A PEFT folder on the disk: its two files are always of one write, and others stay."""

import os

import pytest
from peft_nets import pair, state_of, whole

from loratk import save_adapter
from loratk.errors import StoreError


def test_a_reader_meanwhile_sees_one_write_or_the_other(tmp_path):
    import threading

    folder, stop, seen = tmp_path / "x", threading.Event(), set()
    pair(folder, 1, 1.0)

    def write():
        for number in range(2, 60):
            pair(folder, number, number)
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not stop.is_set():
        alpha, value = whole(folder)
        assert alpha == value
        seen.add(alpha)
    thread.join()
    assert len(seen) > 3


def test_other_files_of_the_folder_stay(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("mine")
    (folder / "notes").mkdir()
    pair(folder, 1, 1.0)
    os.chmod(folder / "adapter_config.json", 0o640)
    save_adapter(folder / "b", state_of({"fc": (3, 4, 2, 2.0)}), format="peft")
    notes = save_adapter(folder, state_of({"fc": (3, 4, 2, 3.0)}), format="peft")
    assert any("also holds 'b'" in note for note in notes)
    assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors", "b", "notes", "tokenizer.json"]
    with pytest.raises(StoreError, match="it is a file"):
        pair(folder / "tokenizer.json", 1, 1)
    with pytest.raises(StoreError, match="there is no folder"):
        pair(tmp_path / "no" / "x", 1, 1)
