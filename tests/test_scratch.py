# SPDX-License-Identifier: BSD-3-Clause
"""Folders for temporary files: those of killed processes are removed, those of all others stay."""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from rainbow_fast import scratch
from rainbow_fast.owner import Owner
from rainbow_fast.scratch import DEAD, dead_parts, in_folder, remove_dead, scratch_folder

Start = Callable[..., tuple[int, Path]]


def hold(parent: Path, how: str, told: int, until: int) -> None:
    """Have a folder until a pipe ends."""
    with scratch_folder(parent) as folder:
        (folder / "activations").write_bytes(bytes(1000))
        if how == "with a child" and os.fork() == 0:
            os.read(until, 1)  # it goes on when its parent is killed
            os._exit(0)
        os.write(told, f"{folder}\n".encode())
        if how != "for a moment":
            os.read(until, 1)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start()`: the number of a process that has a folder in `tmp_path`, and the folder."""
    until, end = os.pipe()
    started = []

    def begin(how: str = "alone") -> tuple[int, Path]:
        told, tell = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                os.close(end)
                signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and processes inherit that
                hold(tmp_path, how, tell, until)
            finally:
                os._exit(0)
        os.close(tell)
        started.append(process)
        with os.fdopen(told) as pipe:
            return process, Path(pipe.readline().strip())

    yield begin
    os.close(end)
    for process in started:
        with suppress(ProcessLookupError, ChildProcessError):
            kill(process)
    os.close(until)


def kill(process: int, by: signal.Signals = signal.SIGKILL) -> None:
    os.kill(process, by)
    os.waitpid(process, 0)


def dead_folder(parent: Path, **words: object) -> Path:
    """A folder as a process has left it that has ended; `words` change its owner."""
    folder = parent / f"rainbow_fast-{replace(Owner.here(), started=1, **words)}-abcdefgh"
    folder.mkdir()
    (folder / "activations").write_bytes(bytes(1000))
    return folder


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_what_a_killed_process_leaves_is_removed_by_the_next(start: Start, tmp_path: Path, by: signal.Signals) -> None:
    killed, dead = start()
    kill(killed, by)
    assert (dead / "activations").stat().st_size == 1000
    _, alive = start()
    assert sorted(tmp_path.iterdir()) == [alive]
    with scratch_folder(tmp_path) as here:
        assert sorted(tmp_path.iterdir()) == sorted([alive, here]) and list(here.iterdir()) == []
    assert sorted(tmp_path.iterdir()) == [alive] and (alive / "activations").exists()


def test_a_process_removes_its_own(start: Start, tmp_path: Path) -> None:
    process, _ = start("for a moment")
    assert os.waitpid(process, 0)[1] == 0 and list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), scratch_folder(tmp_path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(b"1")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_goes_on_keeps_the_folder_of_its_parent(start: Start, tmp_path: Path) -> None:
    parent, folder = start("with a child")
    kill(parent)
    remove_dead(tmp_path)
    assert in_folder(tmp_path) == [(folder, "in use")]


def test_only_folders_of_dead_processes_are_removed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_bytes(b"1")
    others = [tmp_path / name for name in ("rainbow_fast-notes", "rainbow_fast-abcdefgh", "tmpabcdefgh", "mine")]
    for path in others:
        path.mkdir(exist_ok=True)
    (tmp_path / f"rainbow_fast-{Owner.here()}-abcdefgh").mkdir()  # of a process that runs
    dead = dead_folder(tmp_path)
    dead.with_name(dead.name + "x").write_bytes(b"a file")
    dead.with_name(dead.name + "y").symlink_to(mine)
    before = set(tmp_path.iterdir())
    remove_dead(tmp_path)
    assert set(tmp_path.iterdir()) == before - {dead} and (mine / "file").exists()


def test_folders_of_another_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dead_folder(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    remove_dead(tmp_path)
    assert in_folder(tmp_path) == [(folder, "of another user")]
    monkeypatch.undo()
    assert in_folder(tmp_path) == [(folder, DEAD)]


def test_folders_of_another_machine_stay_on_a_shared_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a local one they are of this machine before it was started again, or of a container, which has the lock."""
    folder = dead_folder(tmp_path, host="0123456789ab")
    with monkeypatch.context() as patch:
        patch.setattr(scratch, "on_local_disk", lambda _: False)
        remove_dead(tmp_path)
        assert in_folder(tmp_path) == [(folder, "of another machine")]
    holder = os.open(folder, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    remove_dead(tmp_path)
    assert in_folder(tmp_path) == [(folder, "in use")]
    os.close(holder)
    remove_dead(tmp_path)
    assert in_folder(tmp_path) == []


def test_a_folder_that_is_removed_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a process in another container, which cannot see this one."""
    real, rivals = os.open, iter([lambda path: os.rmdir(path), lambda path: locks.append(held(path))])
    locks: list[int] = []

    def held(path: Path) -> int:
        descriptor = real(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def late(path: Path, *words: int) -> int:
        next(rivals, lambda _: None)(path)
        return real(path, *words)

    monkeypatch.setattr(scratch.os, "open", late)
    with scratch_folder(tmp_path) as folder:
        monkeypatch.undo()
        assert folder.is_dir() and next(rivals, None) is None
        os.close(locks[0])


def test_unfinished_files_of_dead_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "files"
    folder.mkdir()

    def part(owner: Owner, number: int) -> Path:
        return folder / f".rainbow_fast-{owner}-{number:016x}.part"

    ended = replace(Owner.here(), started=1)
    dead, held, away = part(ended, 1), part(Owner.here(), 2), part(replace(Owner.here(), host="0123456789ab"), 3)
    for path in (dead, held, away):
        path.write_bytes(b"half")
    for name in ("film.part", ".film.part", ".video.1080.part", f"{dead.name}ial", dead.name.lstrip(".")):
        (folder / name).write_bytes(b"mine")
    part(ended, 4).mkdir()
    part(ended, 5).symlink_to(folder / "film.part")
    os.mkfifo(part(ended, 6))
    assert dead_parts(folder) == [dead]
    old = time.time() - 2 * scratch.DAY
    for path in (held, away):
        os.utime(path, (old, old))
    assert dead_parts(folder) == sorted([dead, away])
    monkeypatch.setattr(scratch, "on_local_disk", lambda _: False)
    assert dead_parts(folder) == [away]
