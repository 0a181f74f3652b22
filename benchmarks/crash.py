"""Kill a process at its n-th file operation, and lose what was not yet on the disk: the parts of `benchmarks.soak`.

A process that `watched` watches counts its own file operations below a folder, by Python audit events: every file that
is opened for writing, renamed or deleted and every folder that is made or removed, also those of Zarr and `shutil`. It
ends itself with SIGKILL before the n-th of them. What it does, and what it syncs, is noted in a log, from which
`lose_power` knows what a loss of power may take: the content of files that were not synced, and the names of files and
folders whose folder was not.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

__all__ = ["Loss", "lose_power", "operations", "watched"]

Loss = Literal["empty", "zeros", "gone"]
#: Audit events that change files, and the position of the path whose folder is concerned.
_EVENTS = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.link": 1}


@contextmanager
def watched(folder: Path, log: Path, kill_at: int = 0) -> Iterator[None]:
    """Note this process's file operations below `folder` in `log`; end it before the operation of number `kill_at`.

    An audit hook stays for the life of the process: call this once in a process of its own.
    """
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    root = str(folder)
    count = 0
    fsync = os.fsync

    def note(*words: str) -> None:
        os.write(handle, ("\t".join(words) + "\n").encode())

    def full(path: Any, where: Any = -1) -> str:
        text = os.fspath(path) if not isinstance(path, int) else os.readlink(f"/proc/self/fd/{path}")
        text = text.decode() if isinstance(text, bytes) else text
        if not os.path.isabs(text) and isinstance(where, int) and where >= 0:
            text = os.path.join(os.readlink(f"/proc/self/fd/{where}"), text)
        return os.path.abspath(text)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            flags = args[2]
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR) or isinstance(args[0], int):
                return
            paths = [full(args[0])]
        elif event in _EVENTS:
            paths = [full(args[0], args[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1)]
            if event in ("os.rename", "os.link"):
                paths.append(full(args[1]))
        else:
            return
        if not any(path.startswith(root) for path in paths):
            return
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        note(event, *paths)

    def noted_fsync(file: Any) -> None:
        path = full(file if isinstance(file, int) else file.fileno())
        fsync(file)
        if path.startswith(root):
            note("fsync", path)

    os.fsync = noted_fsync
    sys.addaudithook(hook)
    yield


def operations(log: Path) -> int:
    """Return how many file operations a log holds."""
    return sum(not line.startswith("fsync\t") for line in log.read_text().splitlines())


@dataclass
class _Disk:
    """What a disk holds for certain."""

    content: dict[str, bool] = field(default_factory=dict)
    """By file: whether its content is synced."""
    name: dict[str, bool] = field(default_factory=dict)
    """By file and folder: whether its name is."""

    def move(self, old: str, new: str) -> None:
        for known in (self.content, self.name):
            for path in [p for p in known if p == old or p.startswith(old + "/")]:
                known[new + path[len(old) :]] = known.pop(path)
        self.name[new] = False

    def drop(self, path: str) -> None:
        self.content.pop(path, None)
        self.name.pop(path, None)

    def sync(self, path: str) -> None:
        if path in self.content:
            self.content[path] = True
            return
        for known in self.name:
            if os.path.dirname(known) == path:
                self.name[known] = True


def _replay(log: Path) -> _Disk:
    disk = _Disk()
    for line in log.read_text().splitlines():
        event, *paths = line.split("\t")
        if event == "fsync":
            disk.sync(paths[0])
        elif event == "open":
            disk.content[paths[0]] = disk.name[paths[0]] = False
        elif event == "os.mkdir":
            disk.name.setdefault(paths[0], False)
        elif event == "os.rename":
            disk.move(*paths)
        elif event == "os.link":
            disk.content[paths[1]], disk.name[paths[1]] = disk.content.get(paths[0], True), False
        else:
            disk.drop(paths[0])
    return disk


def lose_power(log: Path, random: np.random.Generator, how: Loss, share: float = 0.5) -> list[str]:
    """Damage what a loss of power may damage, each file with a chance of `share`; return the files and folders hurt."""
    disk, hurt = _replay(log), []
    for path, synced in disk.content.items():
        file = Path(path)
        if synced or not file.is_file() or random.random() > share:
            continue
        hurt.append(path)
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(b"" if how == "empty" else bytes(file.stat().st_size))
    for path, synced in sorted(disk.name.items()):
        one = Path(path)
        if synced or not one.exists() or random.random() > share:
            continue
        hurt.append(path)
        if one.is_dir():
            shutil.rmtree(one)
        else:
            one.unlink()
    return hurt
