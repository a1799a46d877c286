"""What this process may use, a part of a shared machine, and which of the processes of a run it is."""

import os
from pathlib import Path


def usable_cores() -> int:
    """Those that the scheduler lets us onto, and no more than the control group's quota; at least 1."""
    cores, quota = _scheduled(), cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def _scheduled() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def openmp() -> dict[str, str]:
    """What torch's threads are to be told by the environment, where the user has not said it."""
    settings = {}
    # Waiting for a thread whose core another program has, one spins for a moment, not for its whole turn.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        settings["GOMP_SPINCOUNT"] = "10000"
    if "OMP_NUM_THREADS" not in os.environ and (usable := usable_cores()) < _scheduled():
        settings["OMP_NUM_THREADS"] = str(usable)  # it knows no quota, and would wait for threads that are held back
    return settings


def processes() -> tuple[int, int]:
    """Which process of a run this is, from 0, and how many a launcher such as torchrun has started: (0, 1) alone."""
    size = max(1, _named("WORLD_SIZE", 1))
    rank = _named("RANK", 0)
    return rank if rank < size else 0, size  # what is wrong with them is told where they meet


def on_this_machine() -> tuple[int, int]:
    """The same among those of this machine, which share its cores and its GPUs."""
    rank, size = processes()
    return (_named("LOCAL_RANK", rank), max(1, _named("LOCAL_WORLD_SIZE", size))) if size > 1 else (0, 1)


def _named(variable: str, otherwise: int) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else otherwise


def cpu_quota(system: Path = Path("/")) -> float | None:
    """The cores that our control group or one above it allows, as containers and batch systems set it."""
    found = []
    for line in _read(system / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds == "" or "cpu" in kinds.split(","):  # version 2 has all kinds in one tree
            mount = system / "sys/fs/cgroup" / ("cpu" if kinds else "")
            group = mount / path.lstrip("/")
            found += [_allowed(folder) for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return min((quota for quota in found if quota), default=None)


def _allowed(group: Path) -> float | None:
    parts = _read(group / "cpu.max").split() or [_read(group / f"cpu.cfs_{what}_us") for what in ("quota", "period")]
    # "max", and -1 in version 1, mean that there is no limit
    return int(parts[0]) / int(parts[1]) if all(part.strip().isdecimal() for part in parts) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
