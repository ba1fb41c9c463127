"""What the figures of a run belong to: the machine and the versions."""

import importlib.metadata
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "epistream",
    "torch",
    "numpy",
    "simplejpeg",
    "webdataset",
    "mosaicml-streaming",
    "litdata",
    "h5py",
    "robomimic",
    "lerobot",
)


def machine(loads: list[float]) -> dict[str, Any]:
    """Machine, versions, date, and the span of load averages that were seen."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": f"{os.cpu_count()} cores, {model}",
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": [round(min(loads), 1), round(max(loads), 1)] if loads else [],
        "versions": versions,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
