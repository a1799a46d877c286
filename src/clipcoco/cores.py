"""How many processor cores this process may use: a job on a shared machine has a part of it."""

import os
from pathlib import Path


def usable_cores() -> int:
    """Those that the scheduler lets us onto, and no more than the control group's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


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
