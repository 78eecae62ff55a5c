"""Folders of files that can be told apart, and writers of them that are killed."""

import os
import shutil
import sys
import warnings

import pytest

from loratk.io import atomic_file, opened_files, replaced_files

NAMES = ["config.json", "tensors.bin", "second/config.json"]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here to kill a writer with")
locks = pytest.mark.skipif(sys.platform == "win32", reason="no locks for folders on Windows")


def write(root, value, names=NAMES):
    """Write the value into each file, with a length that depends on it."""
    with replaced_files(root, names) as places:
        for place in places.values():
            with atomic_file(place) as file:
                file.write(f"{value} ".encode() * (1 + int(value) % 7))


def read(root, names=NAMES):
    """The values of the files, None for one that is not there."""
    with opened_files(root, names) as files:
        return [None if file is None else file.read().split()[0].decode() for file in files.values()]


def entries(root):
    """Everything below a folder, by its name in it."""
    return sorted(entry.relative_to(root).as_posix() for entry in root.rglob("*"))


def killed_at(step, root, value, names=NAMES):
    """Write in a process of its own that dies before that step of those the disk can see; whether it came to its end."""
    with warnings.catch_warnings(action="ignore"):  # of threads, which the child does not use
        child = os.fork()
    if not child:
        count = 0

        def counted(real):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count > step:
                    os._exit(9)
                return real(*arguments, **options)

            return call

        for name in ("replace", "rename", "unlink", "mkdir", "fsync", "rmdir", "chmod"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            write(root, value, names)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def states(root):
    """The files at each step of a killed write over an old one, and the folder as the kill left it."""
    for step in range(1000):
        shutil.rmtree(root, ignore_errors=True)
        write(root, 1)
        done = killed_at(step, root, 2)
        yield done, read(root)
        if done:
            return


def write_many(root, start):
    """Write a hundred times."""
    for value in range(start, start + 100):
        write(root, value)
