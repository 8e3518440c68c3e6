"""This process: how much of it is in memory, and how long it has been there."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path


def resident_bytes() -> int:
    """Bytes of this process in memory now; where that is not told, the most so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def age_seconds() -> float:
    """Seconds since this process began."""
    stat = Path("/proc/self/stat")
    if not stat.is_file():
        return time.process_time()
    began = int(stat.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - began
