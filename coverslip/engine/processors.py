"""How many processors this process may use: affinity, cgroup quota and Slurm, not the host's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def available_processors(
    environment: Mapping[str, str] | None = None, cgroup: Path = Path("/sys/fs/cgroup")
) -> int:
    """The smallest of what affinity, the cgroup's CPU quota and Slurm grant; at least 1.

    environment   where SLURM_CPUS_PER_TASK is looked up; this process's by default
    cgroup        root of the cgroup file system (version 2, or version 1's `cpu` controller)
    """
    environment = os.environ if environment is None else environment
    granted = [_affinity()]
    if (quota := _cgroup_quota(cgroup)) is not None:
        granted.append(quota)
    slurm = environment.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and int(slurm) > 0:
        granted.append(int(slurm))
    return max(1, min(granted))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_quota(root: Path) -> int | None:
    """Whole processors of quota, rounded down but never below one; None without a limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()  # version 1
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in {"max", "-1"}:
        return None
    return max(1, int(quota) // int(period))
