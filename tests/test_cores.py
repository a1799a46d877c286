import os

import pytest

from clipcoco import cores
from clipcoco.data.workers import choose_workers


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"": "150000 100000\n"}, 1.5),  # in a container the group is the root of what is mounted
        ("0::/job/step\n", {"job": "400000 100000\n", "job/step": "max 100000\n"}, 4.0),
        ("0::/job\n", {"job": "max 100000\n"}, None),
        ("0::/gone\n", {}, None),
        ("4:memory:/x\n1:cpu,cpuacct:/docker/a\n0::/\n", {"cpu": (200000, 100000)}, 2.0),  # version 1
        ("1:cpu:/\n", {"cpu": (-1, 100000)}, None),
        ("", {}, None),
    ],
)
def test_the_quota_of_the_control_group_or_of_one_above(tmp_path, groups, files, expected):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for folder, content in files.items():
        place = tmp_path / "sys/fs/cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            (place / "cpu.max").write_text(content)
        else:
            (place / "cpu.cfs_quota_us").write_text(f"{content[0]}\n")
            (place / "cpu.cfs_period_us").write_text(f"{content[1]}\n")
    assert cores.cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "usable"), [(None, 12), (3.9, 3), (0.5, 1), (64.0, 12)])
def test_a_job_counts_the_cores_that_it_may_use(monkeypatch, quota, usable):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "environ", {})
    assert cores.usable_cores() == usable
    # Without a quota the number of threads is torch's own choice: on some machines the half of the logical cores.
    threads = {"OMP_NUM_THREADS": str(usable)} if usable < 12 else {}
    assert cores.openmp() == {"GOMP_SPINCOUNT": "10000"} | threads
    os.environ.update(OMP_NUM_THREADS="5", OMP_WAIT_POLICY="PASSIVE")
    assert cores.openmp() == {}
    workers, why = choose_workers("auto", "cuda", size=32, batch=8)
    assert workers == min(8, max(1, usable - 1))
    assert why == f"{usable} core{'s' * (usable > 1)}"
