"""Joins copies of a LeRobot data set v3.0 into a bigger one by LeRobot's own tool; packets are copied.

    python benchmarks/lerobot/join_copies.py ROOT OUT [--copies 8] [--data-files-mb 0.3]

Data files are small, so that StreamingLeRobotDataset has one for each worker; each camera has one video file, as it
reads no more. Run it in the environment of `requirements-v30.txt`.
"""

import argparse
import shutil
from pathlib import Path

import compat

compat.prepare()

from lerobot.datasets.aggregate import aggregate_datasets  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--data-files-mb", type=float, default=0.3)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    aggregate_datasets(
        ["bench/part"] * arguments.copies,
        "bench/joined",
        roots=[arguments.root] * arguments.copies,
        aggr_root=arguments.out,
        data_files_size_in_mb=arguments.data_files_mb,
    )


if __name__ == "__main__":
    main()
