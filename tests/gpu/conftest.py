"""Make the helpers of tests/kernels and their poisoned memory available here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kernels"))

from kernel_cases import poison as poison  # noqa: E402
