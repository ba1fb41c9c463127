"""Packing as H.264 on two processes beside the bare encoder, and what it takes beside the recorded JPEG.

    python benchmarks/video_packing.py [--data FOLDER] [--episodes 8] [--rounds 3] [--crf 18] [--gop 30]

The recordings are packed as often as it takes to have so many episodes, a shard each. Bare encoding is two processes
that turn frames which they decoded before into H.264 of the same options, and do nothing else; their time is that of
encoding alone. Both are measured in turn, `ratio` is of frames/s, by round; beside other work look at the CPU time of a
frame instead, all of packing against the encoder's. `bytes` are those of the members of the
tars beside all recorded JPEGs, PSNR is what the packing report says.
"""

import argparse
import multiprocessing
import resource
import shutil
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import h5py
import numpy as np
import simplejpeg

from epistream.sharding.format.index import ShardIndex
from epistream.sharding.pack.pack import pack

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data" / "aloha_compressed"
NUM_PROCESSES = 2


def decoded(path: Path, camera: str, most: int) -> list[np.ndarray]:
    """The first frames of a recording, (H, W, 3) as its writer had them."""
    with h5py.File(path) as file:
        rows = file[f"observations/images/{camera}"][:most]
    return [simplejpeg.decode_jpeg(row.tobytes(), colorspace="BGR") for row in rows]


def encode(frames: list[np.ndarray], crf: int, gop: int) -> tuple[float, float]:
    """Seconds, and those of CPU, that PyAV and x264 take with the options that packing gives them."""
    start, start_cpu = time.perf_counter(), time.process_time()
    context = av.CodecContext.create("libx264", "w")
    context.height, context.width = frames[0].shape[:2]
    context.pix_fmt, context.time_base, context.thread_count = "yuv420p", Fraction(1, 50), 1
    params = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:cpu-independent=1"
    context.options = {"crf": str(crf), "preset": "medium", "tune": "fastdecode", "x264-params": params}
    converter = av.video.reformatter.VideoReformatter()
    for number, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        planes = converter.reformat(picture, format="yuv420p", dst_colorspace=5, dst_color_range=1, threads=1)
        planes.pts = number
        context.encode(planes)
    context.encode(None)
    return time.perf_counter() - start, time.process_time() - start_cpu


def cpu_of_children() -> float:
    """Seconds of all processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _bare(path: Path, camera: str, most: int, crf: int, gop: int, started: object, results: object) -> None:
    frames = decoded(path, camera, most)
    started.wait()
    results.put((len(frames), encode(frames, crf, gop)))


def bare_rate(path: Path, most: int, crf: int, gop: int) -> tuple[float, float]:
    """Frames/s of two processes together, a camera each, and seconds of CPU a frame."""
    context = multiprocessing.get_context("spawn")
    started, results = context.Barrier(NUM_PROCESSES), context.Queue()
    with h5py.File(path) as file:
        cameras = sorted(file["observations/images"])[:NUM_PROCESSES]
    processes = [
        context.Process(target=_bare, args=(path, camera, most, crf, gop, started, results)) for camera in cameras
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    rate = sum(num_frames / seconds for num_frames, (seconds, _) in found)
    return rate, sum(cpu for _, (_, cpu) in found) / sum(num_frames for num_frames, _ in found)


def camera_bytes(folder: Path) -> int:
    """Bytes of all frames, of videos with what their containers add."""
    total = 0
    for path in folder.glob("*.index"):
        index = ShardIndex.parse(path.read_bytes(), path.name)
        total += sum(int(size.sum()) for size in index.frame_size.values())
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=SHARED if SHARED.exists() else ROOT / "examples" / "data" / "aloha"
    )
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=400, help="of an episode that are encoded without packing")
    parser.add_argument("--crf", type=int, default=18)
    parser.add_argument("--gop", type=int, default=30)
    asked = parser.parse_args()
    recordings = sorted(asked.data.glob("*.hdf5"))
    quality = {"codec": "h264", "crf": asked.crf, "gop": asked.gop}
    with tempfile.TemporaryDirectory() as made_in:
        folder = Path(made_in)
        (folder / "in").mkdir()
        for number in range(asked.episodes):
            shutil.copy(recordings[number % len(recordings)], folder / "in" / f"episode_{number}.hdf5")
        options = {"shard_size": "2MiB", "workers": NUM_PROCESSES}
        pack(folder / "in", folder / "jpeg", **options)
        ratios = []
        for number in range(asked.rounds):
            bare, bare_cpu = bare_rate(recordings[number % len(recordings)], asked.frames, asked.crf, asked.gop)
            start, start_cpu = time.perf_counter(), cpu_of_children()
            report = pack(folder / "in", folder / f"h264-{number}", **options, **quality)
            cameras = [name for name, feature in report.features.items() if feature.kind == "frames"]
            num_frames = report.num_steps * len(cameras)
            rate, cpu = num_frames / (time.perf_counter() - start), (cpu_of_children() - start_cpu) / num_frames
            ratios.append(rate / bare)
            print(
                f"round {number}: packed {rate:.0f} frames/s, bare {bare:.0f}, ratio {ratios[-1]:.2f}; "
                f"CPU a frame {1000 * cpu:.1f} ms, bare {1000 * bare_cpu:.1f} ms, ratio {bare_cpu / cpu:.2f}",
                flush=True,
            )
        jpeg, video = camera_bytes(folder / "jpeg"), camera_bytes(folder / "h264-0")
        members = sum(path.stat().st_size for path in (folder / "h264-0").glob("*.tar"))
        psnr = {name: report.fidelity[name].mean_psnr_db for name in cameras}
        print(f"ratio {statistics.median(ratios):.2f} (median of {asked.rounds})")
        print(f"frames: {jpeg:,} bytes as JPEG, {video:,} as H.264: {video / jpeg:.3f}; all tars {members:,}")
        print(", ".join(f"{name} {value:.1f} dB" for name, value in psnr.items()), end="")
        print(f", mean {statistics.mean(psnr.values()):.1f} dB")


if __name__ == "__main__":
    main()
