"""Exporting a LeRobot data set on two processes: encoding beside the bare encoder, copying beside ``cp``.

    python benchmarks/lerobot/exporting.py [--data FOLDER] [--episodes 8] [--rounds 3] [--crf 18] [--gop 5]
    python benchmarks/lerobot/exporting.py --copied ROOT [--times 8] [--rounds 3] [--cold]

Encoding: recordings of two cameras are exported as often as it takes to have so many episodes; the bare encoder is that
of `video_packing.py`, with the same options. Copying: so many times a LeRobot set, or shards, as one list, to both
versions; ``cp`` copies what was exported, both from the page cache unless they shall be cold. All are measured in turn.
`ratio` is of wall time, by round; `cpu` that of seconds of CPU of all processes, which other work on the machine
changes less. Opening the source and starting processes count.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from video_packing import NUM_PROCESSES, SHARED, bare_rate, cpu_of_children

import epistream as es

MB = 1e6


def measured(work: object) -> tuple[float, float]:
    """Seconds, and those of CPU of this process and its children."""
    before, start = cpu_of_children() + time.process_time(), time.perf_counter()
    work()
    return time.perf_counter() - start, cpu_of_children() + time.process_time() - before


def encoding(arguments: argparse.Namespace, folder: Path) -> None:
    """Frames a second and CPU a frame, of export and encoder in turn."""
    recordings = sorted(arguments.data.glob("*.hdf5"))
    source = folder / "source"
    source.mkdir()
    for number in range(arguments.episodes):
        shutil.copyfile(recordings[number % len(recordings)], source / f"episode_{number}.hdf5")
    ratios, cpus = [], []
    for number in range(arguments.rounds):
        bare, bare_cpu = bare_rate(recordings[0], arguments.frames, arguments.crf, arguments.gop)
        out = folder / f"out-{number}"
        reports = []
        wall, cpu = measured(
            lambda out=out, reports=reports: reports.append(
                es.export_lerobot(source, out, workers=NUM_PROCESSES, crf=arguments.crf, gop=arguments.gop)
            )
        )
        frames = reports[0].num_steps * len(list((out / "videos").iterdir()))
        ratios.append(frames / wall / bare)
        cpus.append(cpu / frames / bare_cpu)
        print(
            f"round {number}: bare {bare:.0f} frames/s, {1000 * bare_cpu:.2f} ms CPU a frame; export "
            f"{frames / wall:.0f} frames/s, {1000 * cpu / frames:.2f} ms; ratio {ratios[-1]:.2f}, cpu {cpus[-1]:.2f}"
        )
    print(f"encoding: ratio {statistics.median(ratios):.2f}, cpu {statistics.median(cpus):.2f}")


def copying(arguments: argparse.Namespace, folder: Path) -> None:
    """MB a second and CPU an episode, of exports and of ``cp`` in turn.

    Nothing is removed before the end: ext4 creates files several times slower where many were removed just now.
    """
    source = [str(arguments.copied)] * arguments.times
    for version in ("3.0", "2.1"):
        ratios = []
        for number in range(arguments.rounds):
            out, beside = folder / f"{version}-{number}", folder / f"{version}-{number}-beside"
            reports = []
            if arguments.cold:
                forget(arguments.copied)
            wall, cpu = measured(
                lambda out=out, reports=reports, version=version: reports.append(
                    es.export_lerobot(source, out, version=version, workers=NUM_PROCESSES)
                )
            )
            if arguments.cold:
                forget(out)
            plain, plain_cpu = measured(
                lambda out=out, beside=beside: (
                    subprocess.run(["cp", "-r", out, beside], check=True),
                    subprocess.run(["sync", "-f", beside], check=True),
                )
            )
            size, episodes = reports[0].num_bytes / MB, reports[0].num_episodes
            ratios.append(plain / wall)
            print(
                f"v{version}, round {number}: {size:.0f} MB, {episodes} episodes; export {wall:.2f} s, "
                f"{size / wall:.0f} MB/s, {1000 * cpu / episodes:.2f} ms CPU an episode, {1000 * cpu / size:.2f} a MB; "
                f"cp and sync {plain:.2f} s, {size / plain:.0f} MB/s, {1000 * plain_cpu / episodes:.2f} ms an episode"
            )
        print(f"copying to v{version}: {statistics.median(ratios):.2f} of cp's rate")


def forget(folder: Path) -> None:
    """Have files read from the disk again."""
    subprocess.run(["sync", "-f", folder], check=True)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED, help="a folder of ALOHA recordings with two cameras")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--frames", type=int, default=200, help="that the bare encoder takes of each camera")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--crf", type=int, default=18)
    parser.add_argument("--gop", type=int, default=5)
    parser.add_argument("--copied", type=Path, help="a LeRobot data set that is copied instead")
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--cold", action="store_true", help="read what is copied from the disk")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (copying if arguments.copied else encoding)(arguments, Path(folder))


if __name__ == "__main__":
    main()
