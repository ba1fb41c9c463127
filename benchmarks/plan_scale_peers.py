"""What deciding the order of an epoch costs in epistream, MosaicML Streaming and LitData, by number of samples.

    python benchmarks/plan_scale_peers.py [--data FOLDER] [--rounds 5] [--runs mosaicml:1e7,litdata:1e7,...]

Each loader gets a valid index of its own form, 10,000 samples a shard. Shards are files with holes: no data is read.
Every measurement is a fresh process, loaders by turns; times begin after imports. One rank, no workers, batches of 64:

    start      construct, then until the first sample's place is known, then `state_dict()` for the middle of the epoch
    resume     in another process: load that state, until the place of the next sample is known (construction apart)
    rebatched  the same with batches of 32: of another job, as when the number of ranks has changed

The calls that decide the order, as of the versions in PLAN_SCALE.md:

    epistream  EpisodeStream(folder); Schedule and `DatasetPart.windows` (the whole first batch: shard, episode, step)
    MosaicML   StreamingDataset(local=..., shuffle=True); `next(iter(...))`, `__getitem__` giving back the sample's id:
               `_get_work` makes the epoch (`generate_work`: partition, shuffle, resample), threads look for the shard
    LitData    StreamingDataset(folder, shuffle=True); `next(iter(...))`, `__getitem__` giving back the index:
               `__iter__` deals chunks to workers (`get_chunks_and_intervals_per_workers`), `__next__` shuffles inside
               one chunk; a state of another batch size goes through `_setup_elastic_resume`
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from peers.compat import allow_torchvision

_SAMPLES_PER_SHARD = 10_000
_STEPS_PER_EPISODE = 400
_SHARD_BYTES = 128 << 20
_BATCH_SIZE = 64
_TIMEOUT_S = 420
_CASES = ("start", "resume", "rebatched")
_RUNS = "epistream:1e7,mosaicml:1e7,litdata:1e7,epistream:1e8,mosaicml:1e8,litdata:1e8,epistream:1e9"
# Bytes per sample that a case takes, with room to spare (56 and 125 were measured, see PLAN_SCALE.md): what would not
# fit is left out rather than bringing the machine down.
_NEEDS = {"mosaicml": dict.fromkeys(_CASES, 100), "litdata": {"rebatched": 200}}

Figures = dict[str, float]


class Epistream:
    """A manifest of episodes of 400 steps, one window a step."""

    def load(self) -> None:
        from epistream import EpisodeStream, StreamingLoader, Window  # noqa: F401 - loaded when first named
        from epistream.sharding.manifest import manifest_file  # noqa: F401 - loaded by the first dataset that is opened

    def write(self, folder: Path, num_samples: int) -> None:
        from epistream.sharding.format.features import Feature
        from epistream.sharding.manifest.manifest import Manifest
        from epistream.sharding.manifest.manifest_columns import ManifestColumns
        from epistream.sharding.manifest.manifest_writing import write_manifest

        num_shards, num_episodes = num_samples // _SAMPLES_PER_SHARD, num_samples // _STEPS_PER_EPISODE
        per_shard = _SAMPLES_PER_SHARD // _STEPS_PER_EPISODE
        length = np.full(num_episodes, _STEPS_PER_EPISODE)
        checksums = np.random.default_rng(0).integers(0, 256, (2, num_shards, 16), dtype=np.uint8)
        columns = ManifestColumns(
            names=[f"shard-{number:06d}.tar" for number in range(num_shards)],
            shard_bytes=np.full(num_shards, _SHARD_BYTES),
            shard_checksums=checksums[0],
            index_bytes=np.full(num_shards, 1 << 20),
            index_checksums=checksums[1],
            shard_split=np.zeros(num_shards, np.uint8),
            episode_shard=np.arange(num_episodes) // per_shard,
            episode_in_shard=np.arange(num_episodes) % per_shard,
            episode_length=length,
            task_offsets=np.zeros(num_episodes + 1, np.int64),
            task_ids=np.zeros(0, np.int64),
        )
        features = {
            name: Feature(
                name=name,
                kind="array",
                dtype="float32",
                shape=(14,),
                codec="npy",
                jpeg_channels=None,
                rotate=0,
                fps=50.0,
                units=None,
                source_path=name,
            )
            for name in ("observation.state", "action")
        }
        write_manifest(Manifest(features, ("all",), columns), str(folder))

    def construct(self, folder: Path, batch_size: int) -> Any:
        import epistream as es

        window = es.Window(obs=[-1, 0], action=range(100))
        stream = es.EpisodeStream(folder, window=window, batch_size=batch_size)
        return es.StreamingLoader(stream, num_workers=0)

    def first(self, loader: Any) -> Any:
        job, cursor = loader.stream.job, loader.stream.cursor
        windows = job.part.windows(job.part.plan.epoch(cursor[0]), job.schedule(*cursor), 0)
        return int(windows.episode_index[0]), int(windows.step[0])

    def state(self, loader: Any, position: int) -> Callable[[], dict[str, Any]]:
        loader.stream.set_epoch(0, position)
        state_dict: Callable[[], dict[str, Any]] = loader.state_dict
        return state_dict

    def resume(self, loader: Any, state: dict[str, Any]) -> None:
        loader.load_state_dict(state)

    def close(self, loader: Any) -> None:
        loader.close()


class MosaicML:
    """An MDS index; the shards count as present."""

    def load(self) -> None:
        allow_torchvision()
        import streaming  # noqa: F401

    def write(self, folder: Path, num_samples: int) -> None:
        shards = []
        for number in range(num_samples // _SAMPLES_PER_SHARD):
            name = f"shard.{number:05d}.mds"
            _make_hole(folder / name)
            shards.append(
                {
                    "column_encodings": ["ndarray:float32:100,14", "ndarray:float32:2,14"],
                    "column_names": ["action", "state"],
                    "column_sizes": [5600, 112],
                    "compression": None,
                    "format": "mds",
                    "hashes": [],
                    "raw_data": {"basename": name, "bytes": _SHARD_BYTES, "hashes": {}},
                    "samples": _SAMPLES_PER_SHARD,
                    "size_limit": _SHARD_BYTES,
                    "version": 2,
                    "zip_data": None,
                }
            )
        (folder / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))

    def construct(self, folder: Path, batch_size: int) -> Any:
        from streaming import StreamingDataset

        class Places(StreamingDataset):  # type: ignore[misc]
            def __getitem__(self, at: int) -> int:
                return at

        return Places(local=str(folder), shuffle=True, batch_size=batch_size)

    def first(self, data: Any) -> Any:
        return int(next(iter(data)))

    def state(self, data: Any, position: int) -> Callable[[], dict[str, Any]]:
        return lambda: data.state_dict(position, from_beginning=True)  # type: ignore[no-any-return]

    def resume(self, data: Any, state: dict[str, Any]) -> None:
        data.load_state_dict(state)

    def close(self, data: Any) -> None:
        data._iterator.exit()  # its threads would keep the process


class LitData:
    """An index of uncompressed chunks."""

    def load(self) -> None:
        import litdata  # noqa: F401

    def write(self, folder: Path, num_samples: int) -> None:
        from litdata.streaming.writer import BinaryWriter

        # Two samples, by its own writer, for an index that is its own; then the chunks that we want.
        writer = BinaryWriter(str(folder), chunk_size=2)
        for number in range(2):
            writer.add_item(number, {"state": np.zeros((2, 14), np.float32), "action": np.zeros((100, 14), np.float32)})
        writer.done()
        writer.merge()
        index = json.loads((folder / "index.json").read_text())
        (model,) = index["chunks"]
        index["chunks"] = []
        for number in range(num_samples // _SAMPLES_PER_SHARD):
            name = f"chunk-0-{number}.bin"
            _make_hole(folder / name, head=np.uint32(_SAMPLES_PER_SHARD).tobytes())
            size = {"chunk_bytes": _SHARD_BYTES, "chunk_size": _SAMPLES_PER_SHARD}
            index["chunks"].append({**model, **size, "filename": name})
        (folder / "index.json").write_text(json.dumps(index))

    def construct(self, folder: Path, batch_size: int) -> Any:
        from litdata import StreamingDataset

        class Places(StreamingDataset):  # type: ignore[misc]
            def __getitem__(self, at: Any) -> tuple[int, int]:
                return at.chunk_index, at.index

        data = Places(str(folder), shuffle=True, drop_last=True)
        data.set_batch_size(batch_size)  # StreamingDataLoader does these three
        data.set_num_workers(0)
        data.set_epoch(1)
        return data

    def first(self, data: Any) -> Any:
        return [int(number) for number in next(iter(data))]

    def state(self, data: Any, position: int) -> Callable[[], dict[str, Any]]:
        return lambda: data.state_dict(position, 0, _BATCH_SIZE)  # type: ignore[no-any-return]

    def resume(self, data: Any, state: dict[str, Any]) -> None:
        data.load_state_dict(state)

    def close(self, data: Any) -> None:
        pass


LOADERS: dict[str, Epistream | MosaicML | LitData] = {
    "epistream": Epistream(),
    "mosaicml": MosaicML(),
    "litdata": LitData(),
}


def _make_hole(path: Path, head: bytes = b"") -> None:
    """A file of a shard's size that takes no room."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(_SHARD_BYTES)


def _memory(field: str, pid: int | str = "self") -> float:
    """A field of /proc/PID/status in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 2**10
    return 0.0


@contextmanager
def _timed(found: Figures, name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    found[f"{name}_ms"] = (time.perf_counter() - wall) * 1e3
    found[f"{name}_cpu_ms"] = (time.process_time() - cpu) * 1e3


def measure(name: str, num_samples: int, case: str, folder: Path) -> Figures:
    """One case in this process."""
    loader, found = LOADERS[name], Figures()
    loader.load()
    state_file = folder / "state.json"
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = _memory("VmRSS")
    with _timed(found, "construct"):
        made = loader.construct(folder, _BATCH_SIZE // 2 if case == "rebatched" else _BATCH_SIZE)
    if case != "start":
        with _timed(found, "resume"):
            loader.resume(made, json.loads(state_file.read_text()))
            place = loader.first(made)
    else:
        with _timed(found, "first"):
            place = loader.first(made)
    found["peak_mib"] = _memory("VmHWM") - before
    print(f"{name} {num_samples:.0e} {case}: first is {place}", file=sys.stderr)
    if case == "start":
        state_dict = loader.state(made, num_samples // 2 // _BATCH_SIZE * _BATCH_SIZE)
        with _timed(found, "state_first"):
            state = state_dict()
        times = []
        for _ in range(2000):
            start = time.perf_counter()
            state_dict()
            times.append(time.perf_counter() - start)
        found["state_us"] = float(np.median(times)) * 1e6
        found["state_bytes"] = len(json.dumps(state).encode())
        state_file.write_text(json.dumps(state))
    loader.close(made)
    return found


def watch(command: list[str]) -> Figures:
    """Figures of a process, with the most shared memory (/dev/shm) that it was seen to hold."""
    environment = {**os.environ, "LITDATA_DISABLE_VERSION_CHECK": "1"}
    shared, deadline = 0.0, time.monotonic() + _TIMEOUT_S
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, env=environment)
        while process.poll() is None:
            try:
                shared = max(shared, _memory("RssShmem", process.pid))
            except OSError:  # it has just ended
                continue
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(0.01)
        out.seek(0)
        errors.seek(0)
        said = errors.read().strip().splitlines() or [""]
        for line in out.read().splitlines():
            if line.startswith("RESULT "):
                print(said[-1], file=sys.stderr, flush=True)
                return {**json.loads(line.removeprefix("RESULT ")), "shm_mib": shared}
        raise RuntimeError(f"{' '.join(command[2:])}: exit code {process.returncode}, {said[-1]}")


def has_room(name: str, num_samples: int, case: str) -> bool:
    """Whether a case fits in what is free now."""
    meminfo = Path("/proc/meminfo").read_text().split()
    available = int(meminfo[meminfo.index("MemAvailable:") + 1]) << 10
    return _NEEDS.get(name, {}).get(case, 0) * num_samples < available * 0.8


def run(runs: list[tuple[str, int]], rounds: int, data: Path) -> dict[str, dict[str, list[float]]]:
    """All figures by loader, number and case; by turns, so that a busy minute falls on all."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, num_samples in runs:
        folder = data / f"{name}-{num_samples}"
        if not (folder / "COMPLETE").exists():
            folder.mkdir(parents=True, exist_ok=True)
            LOADERS[name].load()
            LOADERS[name].write(folder, num_samples)
            (folder / "COMPLETE").touch()
    for _ in range(rounds):
        for name, num_samples in runs:
            for case in _CASES:
                key = f"{name} {num_samples:.0e} {case}"
                if not has_room(name, num_samples, case):
                    found.setdefault(key, {})
                    continue
                folder = data / f"{name}-{num_samples}"
                command = [sys.executable, __file__, "--here", name, str(num_samples), case, str(folder)]
                for figure, value in watch(command).items():
                    found.setdefault(key, {}).setdefault(figure, []).append(value)
    return found


def main() -> None:
    """Measure and print medians, lowest and highest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default=_RUNS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data" / "plan_scale")
    parser.add_argument("--here", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        name, num_samples, case, folder = arguments.here
        print("RESULT " + json.dumps(measure(name, int(num_samples), case, Path(folder))))
        return
    runs = [(name, int(float(number))) for name, _, number in (run.partition(":") for run in arguments.runs.split(","))]
    for key, figures in run(runs, arguments.rounds, arguments.data.resolve()).items():
        print(key if figures else f"{key}: left out, would not fit in memory")
        for figure, values in figures.items():
            print(f"  {figure:20} {np.median(values):14,.1f}   ({min(values):,.1f} to {max(values):,.1f})")


if __name__ == "__main__":
    main()
