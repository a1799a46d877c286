"""Files that survive a power cut, on file systems that can do less than a local disk."""

import errno
import os
import stat

import pytest

from clipcoco.disk import files
from clipcoco.engine import checkpoint
from clipcoco.errors import EnvironmentProblem
from clipcoco.runs.directory import create
from harness import raising


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_folder_that_can_not_be_synced_is_not_a_reason_to_fail(tmp_path, monkeypatch, code):
    real = os.fsync

    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(code, os.strerror(code))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    run = create(tmp_path, "demo", "run")
    checkpoint.save(run.checkpoints, {"model": {}}, best=True, epoch=1, keep=1)
    assert {path.name for path in run.checkpoints.iterdir()} == {"last.pt", "best.pt", "epoch_001.pt"}


@pytest.mark.parametrize(("code", "room"), [(errno.EIO, False), (errno.ENOSPC, True), (errno.EDQUOT, True)])
def test_a_disk_that_fails_is_told_with_what_helps(tmp_path, monkeypatch, code, room):
    monkeypatch.setattr(os, "fsync", raising(OSError(code, os.strerror(code))))
    with pytest.raises(EnvironmentProblem, match=os.strerror(code)) as told:
        checkpoint.save(tmp_path, {"model": {}}, best=True, epoch=1, keep=1)
    assert ("Free space" in str(told.value)) == room
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_hard_links_a_copy_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    real, synced = os.fsync, set()

    def fsync(file: int) -> None:
        real(file)
        synced.add(os.fstat(file).st_ino)

    for name in ("link", "symlink"):
        monkeypatch.setattr(os, name, raising(PermissionError(errno.EPERM, "no links here")))
    monkeypatch.setattr(os, "fsync", fsync)
    checkpoint.save(tmp_path, {"model": {}}, best=True, epoch=3, keep=1)
    assert files.link(tmp_path / "best.pt", tmp_path / "linked") is False
    found = {path.name: path.stat().st_ino in synced for path in tmp_path.iterdir()}
    assert found == {"last.pt": True, "best.pt": True, "epoch_003.pt": True, "linked": True}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    files.write_atomically(tmp_path / "status", "old")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as context:
            context.setattr(os, name, raising(OSError(errno.EIO, "an error")))
            with pytest.raises(OSError, match="error"):
                files.write_atomically(tmp_path / "status", "new")
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_two_processes_of_one_number_never_write_the_same_file(tmp_path):
    assert len({files.temporary_name(tmp_path / "x") for _ in range(100)}) == 100


def test_what_a_kill_left_of_one_file_is_cleared_and_no_other(tmp_path):
    ours, others = files.temporary_name(tmp_path / "a[1].json"), files.temporary_name(tmp_path / "a1.json")
    for path in (ours, others):
        path.touch()
    files.remove_leftovers(tmp_path / "a[1].json")
    assert list(tmp_path.iterdir()) == [others]
    files.sync_volume(tmp_path)
