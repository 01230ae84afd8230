# SPDX-License-Identifier: BSD-3-Clause
"""Names of processes, and whether these have ended: with processes that run, were killed, or have strange names."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rainbow_fast import owner
from rainbow_fast.owner import NOWHERE, Owner, on_local_disk


@pytest.fixture
def sleeping(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process whose name ends like the one of a process that has ended."""
    (tmp_path / "a) Z (1)").symlink_to("/bin/sleep")
    process = subprocess.Popen([tmp_path / "a) Z (1)", "600"])
    yield process
    process.kill()
    process.wait()


def of(process: int) -> Owner:
    """The owner that stands for another process of this host."""
    stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return replace(Owner.here(), process=process, started=int(stat[19]))


def test_a_name_is_read_as_it_is_written() -> None:
    here = Owner.here()
    assert here.process == os.getpid() and Owner.parse(str(here)) == here and here.ended() is False
    for text in ("", "x", str(here) + "-1", str(here)[1:], "-".join(str(here).split("-")[:2]), f"{here}\n"):
        assert Owner.parse(text) is None


def test_a_process_has_ended_when_it_was_killed(sleeping: subprocess.Popen) -> None:
    """Also before its parent has asked for its exit code; the child that waits for nobody is a zombie."""
    process = of(sleeping.pid)
    assert process.ended() is False
    os.kill(sleeping.pid, signal.SIGKILL)
    os.waitid(os.P_PID, sleeping.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{sleeping.pid}/stat").exists()
    assert process.ended() is True
    sleeping.wait()
    assert process.ended() is True


def test_a_number_that_is_used_again_is_another_process(sleeping: subprocess.Popen) -> None:
    process = of(sleeping.pid)
    assert replace(process, started=process.started - 1).ended() is True


def test_processes_of_other_hosts_are_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert replace(Owner.here(), host="0123456789ab").ended() is None
    assert replace(Owner.here(), host=NOWHERE).ended() is None
    monkeypatch.setattr(owner, "PROC", tmp_path)  # as in a sandbox without /proc
    assert Owner.here() == Owner(NOWHERE, os.getpid(), 0)
    assert Owner.here().ended() is None


def test_a_file_system_is_local_or_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def local(folder: Path) -> bool:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            return on_local_disk(descriptor)
        finally:
            os.close(descriptor)

    assert local(Path("/dev/shm")) and not local(Path("/proc"))
    device = os.stat(tmp_path).st_dev
    (tmp_path / "self").mkdir()
    for kind, expected in (("ext4", True), ("nfs4", False), ("fuse.sshfs", False)):
        line = f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw,noatime shared:1 - {kind} server:/x rw\n"
        (tmp_path / "self" / "mountinfo").write_text(line)
        with monkeypatch.context() as patch:
            patch.setattr(owner, "PROC", tmp_path)
            assert local(tmp_path) is expected
