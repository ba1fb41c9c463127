"""How fast windows come from videos, beside JPEG shards of the same episodes, interleaved in one run.

    python benchmarks/video_reading.py --episodes DIR [--copies 5] [--gops 2,8,30] [--rounds 5] [--seconds 4]
        [--obs 0] [--once] [--json OUT]

DIR holds HDF5 files whose cameras are JPEG; each is packed `--copies` times, once as it is and once as H.264 for each
length of groups, into a temporary folder (or `--data`, which is used again). In each round every kind is read for some
seconds by two worker processes, one kind after the other, in another order each time. Read the ratios, of windows/s to
those of JPEG in the same round: the median of the rounds, and their spread.

With --once frames are decoded once and kept in shared memory, `--steps` of them at most: the first epoch is timed from
its first batch to its last, and then epochs in which all is there.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

import epistream as es
from epistream.loader.measuring.bound import measure_bound
from epistream.loader.measuring.rates import run_steadily

BATCH_SIZE, NUM_WORKERS = 32, 2
_WARM_UP = 16


def prepare(episodes: Path, copies: int, gops: list[int], data: Path) -> dict[str, Path]:
    """The shards of each kind, packed where they are not there yet."""
    kinds: dict[str, dict[str, Any]] = {"jpeg": {}, **{f"g={gop}": {"codec": "h264", "gop": gop} for gop in gops}}
    with tempfile.TemporaryDirectory(dir=data) as temporary:
        for path in sorted(episodes.glob("*.hdf5")):
            for copy in range(copies):
                shutil.copy(path, Path(temporary) / f"{path.stem}_{copy}.hdf5")
        for kind, options in kinds.items():
            if not (data / kind / str(copies)).exists():
                es.pack(temporary, data / kind / str(copies), **options)
    return {kind: data / kind / str(copies) for kind in kinds}


def stream_of(shards: Path, obs: list[int], decode: str, directory: str) -> es.EpisodeStream:
    """A stream of two cameras."""
    cache = es.CacheOptions(directory=directory)
    window = es.Window(obs=obs, action=[0])
    return es.EpisodeStream(shards, batch_size=BATCH_SIZE, window=window, decode=decode, cache=cache)


def per_read(shards: dict[str, Path], obs: list[int], rounds: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Windows/s and CPU seconds per 1,000 windows of each kind and of its bare decoding, by round."""
    found: dict[str, dict[str, list[float]]] = {kind: {"windows/s": [], "bound": [], "cpu_s": []} for kind in shards}
    with tempfile.TemporaryDirectory() as directory:
        for number in range(rounds):
            for kind in list(shards)[:: 1 if number % 2 else -1]:
                stream = stream_of(shards[kind], obs, "per_read", directory)
                with es.StreamingLoader(stream, num_workers=NUM_WORKERS) as loader:
                    run = run_steadily(loader, _WARM_UP, seconds)
                found[kind]["windows/s"].append(run.windows_per_s)
                found[kind]["cpu_s"].append(run.cpu_s / run.stats.num_windows * 1000)
                found[kind]["bound"].append(measure_bound(stream.job, NUM_WORKERS, seconds / 2).decode)
    return found


def once(shards: dict[str, Path], obs: list[int], rounds: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Windows/s of the first epoch and of later ones, by round, and frames that were decoded for each of the data."""
    found: dict[str, dict[str, list[float]]] = {kind: {"first": [], "windows/s": [], "decoded": []} for kind in shards}
    for number in range(rounds):
        with ExitStack() as stack:
            loaders = {}
            for kind in list(shards)[:: 1 if number % 2 else -1]:
                directory = tempfile.mkdtemp(prefix="video-reading-", dir="/dev/shm")
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                stream = stream_of(shards[kind], obs, "once", directory + "/cache")
                loaders[kind] = loader = stack.enter_context(es.StreamingLoader(stream, num_workers=NUM_WORKERS))
                began, num_windows = time.perf_counter(), 0
                for batch in loader:
                    num_windows += len(batch["step_index"])
                found[kind]["first"].append(num_windows / (time.perf_counter() - began))
                num_frames = 2 * sum(stream.job.dataset.episode_length.tolist())
                found[kind]["decoded"].append(loader.stats().decoded.num_decoded / num_frames)
                for _ in range(8):  # JPEG is kept little by little
                    if loader.stats().decoded.num_kept >= num_frames:
                        break
                    for batch in loader:
                        del batch
                before = time.perf_counter()
                num_windows = 0
                while time.perf_counter() - before < seconds:
                    for batch in loader:
                        num_windows += len(batch["step_index"])
                found[kind]["windows/s"].append(num_windows / (time.perf_counter() - before))
                loader.close()
    return found


def show(title: str, found: dict[str, dict[str, list[float]]]) -> None:
    """A table of medians, and of ratios to JPEG in the same round."""
    table = Table(title=title, box=box.SIMPLE)
    figures = list(next(iter(found.values())))
    for heading in ("", *figures, *(f"{figure} / JPEG" for figure in figures)):
        table.add_column(heading, justify="right" if heading else "left")
    for kind, rounds in found.items():
        cells = [f"{statistics.median(rounds[figure]):,.2f}" for figure in figures]
        for figure in figures:
            ratios = [a / b for a, b in zip(rounds[figure], found["jpeg"][figure], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        table.add_row(kind, *cells)
    Console(width=150).print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of the packed shards, kept")
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--gops", default="2,8,30")
    parser.add_argument("--obs", default="0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    obs = [int(step) for step in arguments.obs.split(",")]
    with ExitStack() as stack:
        data = arguments.data or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data.mkdir(parents=True, exist_ok=True)
        gops = [int(gop) for gop in arguments.gops.split(",")]
        shards = prepare(arguments.episodes, arguments.copies, gops, data)
        measure = once if arguments.once else per_read
        found = measure(shards, obs, arguments.rounds, arguments.seconds)
    title = f"decode={'once' if arguments.once else 'per_read'}, obs={obs}, batch {BATCH_SIZE}, {NUM_WORKERS} workers"
    show(title, found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
