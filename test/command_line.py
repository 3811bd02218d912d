"""Our tools as a user starts them: a process of its own, its exit code and its two streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def run_module(
    module: str, *arguments: object, timeout_s: float = 240.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` in the repository; `environment` is added to that of the tests."""
    return subprocess.run(
        [sys.executable, '-m', module, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
