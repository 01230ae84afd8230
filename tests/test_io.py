# SPDX-License-Identifier: BSD-3-Clause
"""Files are written completely or not at all, on real file systems."""

import math
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from here import ROOT, fresh_python

from rainbow_fast.io import read_records, whole, write_all, write_records, write_whole


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_contents_reach_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    log = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        log.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def renamed(*paths) -> None:
        log.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_whole(tmp_path / "file", "text")
    assert log == ["file", "rename", "folder"]


def test_a_link_is_followed_and_permissions_are_kept(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to("file")
    write_whole(link, "one")
    assert link.is_symlink() and path.read_text() == "one"
    path.chmod(0o640)
    write_whole(link, "two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 and path.read_text() == "two"
    path.chmod(0o444)
    write_whole(path, "three")  # a folder may be written into, and so its files may be replaced
    assert stat.S_IMODE(path.stat().st_mode) == 0o444 and left(tmp_path) == ["file", "link"]


def test_a_new_file_has_the_permissions_of_the_process(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_replaced_file_is_private_until_it_has_its_permissions(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "one")
    with whole(path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_text("two")
    assert path.read_text() == "two"


@pytest.mark.parametrize("name", ["ä ö 漢字 .st", "new\nline", "x" * 255, ".hidden", "-dash", "%s"])
def test_every_name_that_the_file_system_takes(tmp_path, name):
    write_whole(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text" and left(tmp_path) == [name]


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path, "a folder"), (Path("/dev/null"), "a device or a pipe"), (tmp_path / "pipe", "a dev")):
        with pytest.raises(ValueError, match=f"^--out: {path} is {what}"):
            write_whole(path, "text", "--out")
    with pytest.raises(ValueError, match=r"^path: \. is a folder, wanted a file"):
        write_whole(Path(""), "text")
    with pytest.raises(FileNotFoundError, match="^path: no folder .*missing"):
        write_whole(tmp_path / "missing" / "file", "text")
    with pytest.raises(OSError, match="path: cannot write into /proc: "):
        write_whole(Path("/proc/none"), "text")
    assert left(tmp_path) == ["pipe"] and stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_threads_that_write_one_path_leave_one_of_their_files(tmp_path):
    texts = [str(number) * (1000 * number + 1) for number in range(4)]
    errors: list[Exception] = []

    def write(text: str) -> None:
        try:
            write_whole(tmp_path / "file", text)
        except Exception as error:
            errors.append(error)

    for _ in range(25):
        threads = [threading.Thread(target=write, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (tmp_path / "file").read_text() in texts
    assert not errors and left(tmp_path) == ["file"]


def test_a_file_larger_than_the_process_may_write_leaves_what_was_there(tmp_path):
    """RLIMIT_FSIZE stands for a full disk: the same error at the same calls."""
    path = tmp_path / "file"
    write_whole(path, "before")
    fresh_python(f"""
import resource
from pathlib import Path
from rainbow_fast.io import write_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    write_whole(Path({str(path)!r}), b"x" * 8193)
except OSError as error:
    assert "path: cannot write into {tmp_path} (the disk is full): " in str(error), error
else:
    raise SystemExit("no error")
""")
    assert path.read_text() == "before" and left(tmp_path) == ["file"]


def test_a_write_in_parts_is_whole(tmp_path, monkeypatch):
    """The system may write fewer bytes than it was given."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    with (tmp_path / "file").open("wb") as file:
        write_all(file.fileno(), memoryview(b"0123456789"))
    assert (tmp_path / "file").read_bytes() == b"0123456789"


KILLED = """
import os, signal, sys
from pathlib import Path
from rainbow_fast.io import whole
with whole(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_what_was_there(tmp_path):
    write_whole(tmp_path / "file", "before")
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "file")], cwd=ROOT)
    assert run.returncode == -9 and (tmp_path / "file").read_text() == "before"
    (part,) = tmp_path.glob(".*.part")
    assert len(left(tmp_path)) == 2 and part.read_text() == "half"


def test_records_that_are_not_json_are_named(tmp_path):
    path = tmp_path / "records.jsonl"
    inf = math.inf
    write_records(path, [{"a": float("nan"), "b": [inf, {"c": -inf}], "d": "infinite"}])
    assert '"b": ["inf", {"c": "-inf"}]' in path.read_text()
    assert read_records(path) == [{"a": None, "b": [inf, {"c": -inf}], "d": "infinite"}]
    assert read_records(tmp_path / "none") == []
    for text in ("{", "[" * 100_000):
        path.write_text(f'{{"a": 1}}\n{text}\n')
        with pytest.raises(ValueError, match="records.jsonl: line 2 is not JSON"):
            read_records(path)
