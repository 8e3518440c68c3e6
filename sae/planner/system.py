"""The free memory of this machine, and the memory and age of this process."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

import torch

from sae.errors import UserError


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Return the free bytes of a device; on the host, at most what its cgroups allow.

    Raises:
        UserError: If the free memory cannot be read on this system.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [free for free in map(_cgroup_free, _cgroups()) if free is not None]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    if not limits:
        raise UserError("the free memory cannot be read on this system; give --memory GIB")
    return min(limits)


def _cgroups() -> list[Path]:
    """Return the folders of the memory controller that may limit this process."""
    file = Path("/proc/self/cgroup")
    lines = file.read_text().splitlines() if file.is_file() else []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            # In a container the path is that of the host, and the limits are in the root folder.
            root = Path("/sys/fs/cgroup") / controllers
            folders += [root / path.lstrip("/"), root]
    return folders


def _cgroup_free(folder: Path) -> int | None:
    """Return the free bytes of a cgroup (v1 or v2), or None if it has no limit.

    Inactive file cache counts as free, because the kernel gives it up.
    """
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            maximum = (folder / limit).read_text().strip()
            used = int((folder / usage).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            continue
        if maximum != "max" and int(maximum) < 2**60:  # v1 writes about 2**63 for no limit
            stats = dict(line.split() for line in lines)
            return max(0, int(maximum) - used + int(stats.get(cache, 0)))
    return None


def resident_bytes() -> int:
    """Return the resident bytes of this process; its peak so far if they cannot be read."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def age_seconds() -> float:
    """Return the seconds since this process started."""
    stat = Path("/proc/self/stat")
    if not stat.is_file():
        return time.process_time()
    started = int(stat.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - started
