"""What the measurements say of the machine and of their own process."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_name() -> str:
    """Name of the processor, as the system gives it."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(':', 1) for line in lines if ':' in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    for key in ('model name', 'Model', 'Hardware'):
        if key in named:
            return f'{named[key]} ({os.cpu_count()} cores, {platform.machine()})'
    return platform.machine()


def _status_bytes(field: str) -> int:
    """A field of this process's memory statistics."""
    for line in Path('/proc/self/status').read_text(encoding='ascii').splitlines():
        name, _, value = line.partition(':')
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f'/proc/self/status has no field {field}')


def reset_peak_memory() -> int:
    """Let the peak start anew; returns the resident bytes of now.

    `resource.getrusage` would not do: a child starts with the peak of its parent.
    """
    Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
    return _status_bytes('VmRSS')


def peak_memory_bytes() -> int:
    """Highest resident size of this process since `reset_peak_memory`, or since its start."""
    return _status_bytes('VmHWM')
