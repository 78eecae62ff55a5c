"""A merge that was interrupted: the old file is there until the new one is whole, and the next merge goes on where it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from merge_files import adapter, bits, entries

import loratk
from loratk.convert.partial import JOURNAL, partial_folder
from loratk.errors import StoreError
from loratk.exchange import save_adapter
from loratk.io import write_safetensors
from loratk.io.safetensors_header import parse_header

if sys.platform == "win32":
    pytest.skip("signals and limits of POSIX", allow_module_level=True)

SCRIPT = Path(__file__).with_name("merge_process.py")
COUNT = 24
MODULES = {f"layers.{n}": (16, 16) for n in range(COUNT)}


def files(tmp_path, shards):
    """A base of many arrays in one file or several, and an adapter for each second one."""
    rng = np.random.default_rng(0)
    held = {f"{name}.weight": rng.standard_normal((16, 16)).astype(np.float32) for name in MODULES}
    save_adapter(tmp_path / "a.h5", adapter(modules=dict(list(MODULES.items())[::2])))
    if shards == 1:
        write_safetensors(tmp_path / "base.safetensors", held, {})
        return tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    (tmp_path / "base").mkdir()
    names, where = sorted(held), {}
    for place in range(shards):
        part = names[place::shards]
        write_safetensors(tmp_path / f"base/m{place}.safetensors", {name: held[name] for name in part}, {})
        where |= dict.fromkeys(part, f"m{place}.safetensors")
    text = '{"weight_map": {' + ", ".join(f'"{name}": "{file}"' for name, file in where.items()) + "}}"
    (tmp_path / "base" / "model.safetensors.index.json").write_text(text)
    return tmp_path / "base", tmp_path / "out"


def started(base, out, *, limit=0, pause=0.0, force=""):
    command = [sys.executable, str(SCRIPT), *map(str, (base, base.parent / "a.h5", out, limit, pause, force))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=SCRIPT.parents[2])


def journal(out):
    """How many arrays the journal of an unfinished merge says are finished."""
    try:
        return (partial_folder(out) / JOURNAL).read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return -1


def until(process, out, count):
    """Wait until a merge has finished so many arrays."""
    end = time.monotonic() + 60
    while journal(out) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("old", [False, True])
def test_killed_at_several_points_and_gone_on_with(tmp_path, shards, old):
    base, out = files(tmp_path, shards)
    loratk.merge(base, tmp_path / "a.h5", tmp_path / f"want{out.suffix}")
    if old:
        loratk.merge(base, adapter("other", seed=9, modules=MODULES), out)
    before = bits(out) if old else None
    seen = []
    for count in (0, 3, 9, 20):
        process = started(base, out, pause=0.03, force="force")
        until(process, out, count)
        process.kill()
        process.communicate()
        assert (bits(out) if out.exists() else None) == before
        assert not (out.is_dir() and (out / JOURNAL).exists())
        seen.append(journal(out))
    assert seen == sorted(seen)
    assert seen[-1] < COUNT
    done = loratk.merge(base, tmp_path / "a.h5", out, force=True)
    assert done.resumed == seen[-1]
    assert f"{seen[-1]} of {COUNT} arrays were there from a merge that was interrupted" in done.notes
    names = [""] if shards == 1 else [path.name for path in (tmp_path / "want").iterdir()]
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / f"want{out.suffix}" / name).read_bytes()
    assert [path for path in entries(tmp_path) if "loratk" in path] == []


@pytest.mark.parametrize("signum", [signal.SIGINT])
def test_interrupted_by_ctrl_c(tmp_path, signum):
    base, out = files(tmp_path, 1)
    out.write_bytes(b"mine")
    process = started(base, out, pause=0.03, force="force")
    until(process, out, 5)
    process.send_signal(signum)
    assert "interrupted" in process.communicate(timeout=30)[0]
    assert out.read_bytes() == b"mine"
    assert journal(out) >= 5
    assert loratk.merge(base, tmp_path / "a.h5", out, force=True).resumed >= 5


@pytest.mark.parametrize("end", ["h5", "npz"])
def test_other_stores_are_killed_and_gone_on_with(tmp_path, end):
    base, _ = files(tmp_path, 1)
    out, want = tmp_path / f"out.{end}", tmp_path / f"want.{end}"
    loratk.merge(base, tmp_path / "a.h5", want)
    out.write_bytes(b"mine")
    for count in (0, 3, 20, COUNT):  # all arrays are made then, and it is killed while they are brought into the store
        process = started(base, out, pause=0.03, force="force")
        until(process, out, count)
        process.kill()
        process.communicate()
        assert out.read_bytes() == b"mine"
    done = loratk.merge(base, tmp_path / "a.h5", out, force=True)
    assert done.resumed == COUNT
    assert out.read_bytes() == want.read_bytes()
    assert loratk.merge(base, tmp_path / "a.h5", out, force=True).resumed == 0
    assert [path for path in entries(tmp_path) if "loratk" in path] == []


def half(tmp_path):
    """A merge that was killed after some arrays."""
    base, out = files(tmp_path, 1)
    process = started(base, out, pause=0.03)
    until(process, out, 8)
    process.kill()
    process.communicate()
    return base, out


def test_what_another_merge_left_is_not_taken(tmp_path):
    base, out = half(tmp_path)
    for change in ({"weights": [0.5]}, {"resume": False}):
        assert loratk.merge(base, tmp_path / "a.h5", out, force=True, **change).resumed == 0
        out.unlink()
    base, out = half(tmp_path)
    os.utime(base)  # the base may be another now
    assert loratk.merge(base, tmp_path / "a.h5", out).resumed == 0


def test_finished_arrays_are_checked_before_they_are_taken(tmp_path):
    base, out = half(tmp_path)
    data = partial_folder(out) / "data"
    raw = bytearray(data.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    _, held = parse_header(bytes(raw[8 : 8 + length]), len(raw) - 8 - length, data)
    lines = (partial_folder(out) / JOURNAL).read_text().splitlines()[1:]
    name = lines[2].split('"name": "')[1].split('"')[0]
    raw[8 + length + held[name].begin + 5] ^= 1
    data.write_bytes(raw)
    done = loratk.merge(base, tmp_path / "a.h5", out)
    assert done.resumed == len(lines) - 1
    loratk.merge(base, tmp_path / "a.h5", tmp_path / "want.safetensors")
    assert out.read_bytes() == (tmp_path / "want.safetensors").read_bytes()


@pytest.mark.parametrize("line", [b'{"name": "x"', b"\xff\xfe\n", b"[]\n", b'{"name": 3}\n'])
def test_a_damaged_journal_is_a_new_beginning(tmp_path, line):
    base, out = half(tmp_path)
    with (partial_folder(out) / JOURNAL).open("ab") as file:
        file.write(line)
    loratk.merge(base, tmp_path / "a.h5", out)
    loratk.merge(base, tmp_path / "a.h5", tmp_path / "want.safetensors")
    assert out.read_bytes() == (tmp_path / "want.safetensors").read_bytes()


def test_two_at_once_are_kept_apart(tmp_path):
    base, out = files(tmp_path, 1)
    process = started(base, out, pause=0.05)
    until(process, out, 2)
    with pytest.raises(StoreError, match="another process is merging into it"):
        loratk.merge(base, tmp_path / "a.h5", out)
    assert "resumed 0" in process.communicate(timeout=60)[0]
    assert out.exists()


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_no_room(tmp_path, shards, share):
    base, out = files(tmp_path, shards)
    old = loratk.merge(base, adapter("other", seed=9, modules=MODULES), out)
    want, before = bits(out), entries(tmp_path)
    said = started(base, out, limit=int(old.size / shards * share), force="force").communicate(timeout=60)[0]
    assert said.splitlines()[1].startswith(f"StoreError: cannot write '{out}': File too large")
    assert len(said.splitlines()) == 2
    assert bits(out) == want
    assert entries(tmp_path) == before


@pytest.mark.parametrize("end", ["h5", "npz"])
def test_no_room_in_other_stores(tmp_path, end):
    base, _ = files(tmp_path, 1)
    (tmp_path / f"out.{end}").write_bytes(b"mine")
    said = started(base, tmp_path / f"out.{end}", limit=9000, force="force").communicate(timeout=60)[0]
    assert said.splitlines()[1].startswith("StoreError: cannot write")
    assert (tmp_path / f"out.{end}").read_bytes() == b"mine"
    assert [path for path in entries(tmp_path) if "loratk" in path] == []


def test_a_folder_that_is_not_there(tmp_path):
    base, _ = files(tmp_path, 1)
    with pytest.raises(StoreError, match="there is no folder"):
        loratk.merge(base, tmp_path / "a.h5", tmp_path / "deep" / "out.safetensors")
