"""How much memory can still be taken."""

from __future__ import annotations

from pathlib import Path

import torch

from sae.errors import UserError


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Memory of a device that can still be taken; of the host within the limit of its cgroup."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [room for room in map(_cgroup_room, _cgroups()) if room is not None]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found.append(int(fields["MemAvailable"].split()[0]) * 1024)
    if not found:
        raise UserError("how much memory is free cannot be read on this system; give --memory GIB")
    return min(found)


def _cgroups() -> list[Path]:
    """Folders of the memory controller that may limit this process."""
    file = Path("/proc/self/cgroup")
    lines = file.read_text().splitlines() if file.is_file() else []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            # In a container the path is the host's, and the folder is the root.
            root = Path("/sys/fs/cgroup") / controllers
            folders += [root / path.lstrip("/"), root]
    return folders


def _cgroup_room(folder: Path) -> int | None:
    """Bytes below the limit of a cgroup, v2 or v1; file cache, which gives way, counts as free."""
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = (folder / limit).read_text().strip()
            used = int((folder / usage).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            continue
        if most != "max" and int(most) < 2**60:  # v1 writes some 2**63 for none
            stats = dict(line.split() for line in lines)
            return max(0, int(most) - used + int(stats.get(cache, 0)))
    return None
