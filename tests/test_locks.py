import errno
import fcntl
import os

import pytest

from clipcoco.disk.locks import Held, is_held, lock
from clipcoco.errors import EnvironmentProblem
from clipcoco.prepare.lock import lock as lock_root
from clipcoco.runs.directory import create
from clipcoco.runs.standing import read_standing
from harness import raising


def test_who_holds_it_is_named_and_it_is_free_afterwards(tmp_path):
    run, path = create(tmp_path, "demo", "run"), tmp_path / "lock"
    with lock(path) as note, run.lock(), lock_root(tmp_path):
        assert (note, is_held(path)) == ("", True)
        with pytest.raises(Held, match=f"^{os.getpid()} on "), lock(path):
            pass
        with pytest.raises(
            EnvironmentProblem, match=f"run run is already running in another process, {os.getpid()} on"
        ):
            run.lock().__enter__()
        with pytest.raises(EnvironmentProblem, match=f"is being prepared by another process, {os.getpid()} on"):
            lock_root(tmp_path).__enter__()
    assert is_held(path) is False
    with lock(path):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_told_of_and_worked_on(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, "flock", raising(OSError(code, os.strerror(code))))
    run = create(tmp_path, "demo", "run")
    with run.lock() as note, lock_root(tmp_path / "data") as other:
        assert os.strerror(code) in note
        assert os.strerror(code) in other
    assert is_held(run.path / ".lock") is None
    run.write_status(state="running")
    run.config.write_text("extends: demo\n")
    assert read_standing(run).state == "running"  # it was heard of a moment ago
    os.utime(run.path / "status.json", (0, 0))
    assert read_standing(run).state == "killed"


def test_a_lock_that_fails_for_another_reason_is_an_error(tmp_path, monkeypatch):
    run = create(tmp_path, "demo", "run")
    monkeypatch.setattr(fcntl, "flock", raising(OSError(errno.EIO, os.strerror(errno.EIO))))
    with pytest.raises(EnvironmentProblem, match="run run can't be locked: Input/output error"):
        run.lock().__enter__()


def test_whoever_may_write_into_the_folder_may_write_its_lock(tmp_path):
    tmp_path.chmod(0o775)
    with lock(tmp_path / "lock"):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("make", ["linked", "hard-linked", "full"])
def test_a_strangers_file_in_its_place_is_never_written(tmp_path, make):
    precious, path = tmp_path / "precious", tmp_path / "lock"
    precious.write_text("mine")
    if make == "linked":
        path.symlink_to(precious)
        with pytest.raises(OSError, match="symbolic links"):
            lock(path).__enter__()
    else:
        if make == "full":
            precious.rename(path)
            precious = path
        else:
            path.hardlink_to(precious)
        with lock(path):
            pass
    assert precious.read_text() == "mine"
