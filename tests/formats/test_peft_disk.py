"""A PEFT folder is the old one or the new one, whole, whatever happens to the process that writes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft_nets import pair, state_of, whole

from loratk import save_adapter
from loratk.errors import StoreError

KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from peft_nets import pair, whole

there, home = sys.argv[3] == "True", Path(sys.argv[1])
calls = ("replace", "rename", "unlink", "mkdir", "fsync", "rmdir", "chmod")
for fate in range(1000):
    folder = home / str(fate)
    if there:
        pair(folder, 1, 1.0)
    if not os.fork():
        count = 0
        def dying(real):
            def call(*arguments, **how):
                global count
                count += 1
                if count > fate:
                    os._exit(9)
                return real(*arguments, **how)
            return call
        for name in calls:
            setattr(os, name, dying(getattr(os, name)))
        pair(folder, 2, 2.0)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.wait()[1]) == 0
    assert folder.exists() or not there
    if folder.exists():
        assert whole(folder) in ([(1.0, 1.0)] if there and not ended else []) + [(2.0, 2.0)], (fate, whole(folder))
    pair(folder, 3, 3.0)
    assert whole(folder) == (3.0, 3.0)
    assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors"], (fate, os.listdir(folder))
    if ended:
        break
assert [entry for entry in os.listdir(home) if entry.startswith(".")] == [], os.listdir(home)
print(fate)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork to kill a copy of the process")
@pytest.mark.parametrize("there", [False, True])
def test_a_write_killed_at_any_call_leaves_the_old_or_the_new(there, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent), str(there)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


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
