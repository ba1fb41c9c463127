"""Whether packing the data in another way would pay: tried on frames of the run's own."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from epistream.configs.config import Config
from epistream.configs.prediction import Choice, Prediction, predict
from epistream.configs.survey import PLAIN, Survey
from epistream.errors import EpistreamError
from epistream.loader.measuring.rates import Kind, LoadRate, measure_loading
from epistream.loader.measuring.sample_frames import own_frames
from epistream.loader.reading.frames import FrameDecoder
from epistream.loader.stream import EpisodeStream
from epistream.sharding.files.names import is_tar
from epistream.sharding.format.codecs import encode_frame, jpeg_can_hold
from epistream.sharding.format.features import Feature
from epistream.sharding.layouts.layout_file import chosen_layout
from epistream.sharding.pack.pack import pack

Codec = Literal["jpeg", "raw"]

_NUM_FRAMES = 24
# Repacking is work and another copy of the data: only for this much more speed.
WORTH = 1.3
_PACK_BYTES = 64 << 20


@dataclass(frozen=True)
class Alternative:
    """One way to pack.

    Attributes:
        name: in words.
        options: of ``epistream pack`` that make it.
        dataset_bytes: of the whole dataset, about.
        prediction: with it.
        pays: whether it is worth the work.
    """

    name: str
    options: dict[str, Any]
    dataset_bytes: int
    prediction: Prediction
    pays: bool


@dataclass(frozen=True)
class Load:
    """How a loader runs on each rank of a node, with what memory, and how fast."""

    choice: Choice
    ranks: int
    cache_bytes: int
    windows_per_s: float


def alternatives(found: Survey, sample: EpisodeStream, load: Load, kept: Survey | None) -> list[Alternative]:
    """Ways to pack the frames at the size that is streamed, each tried on some frames; the fastest first.

    Args:
        found: of the present data.
        sample: frames are taken from it.
        load: how the loader runs, and what it reaches without packing anew.
        kept: as it is with decoded episodes in memory, which is how raw frames are read as well.
    """
    frames, size = own_frames(sample.job, _NUM_FRAMES), sample.job.frames.image_size
    tried = []
    codecs: tuple[Codec, ...] = ("jpeg", "raw")
    for codec in codecs if frames else ():
        costs = try_codec(sample, frames, codec)
        if costs is None:
            continue
        other = with_costs(found, sample, costs)
        if codec == "raw" and kept is not None:
            # Copying is limited by the memory, which a few frames in the processor's cache do not show.
            other = replace(kept, dataset_bytes=other.dataset_bytes)
        prediction = predict(other, load.choice, load.ranks, load.cache_bytes)
        options: dict[str, Any] = {"codec": codec}
        text: str = codec
        if size is not None:
            text, options["image_size"] = f"{codec} at {size[1]}x{size[0]}", [size[1], size[0]]
        pays = prediction.windows_per_s > WORTH * load.windows_per_s
        tried.append(Alternative(text, options, other.dataset_bytes, prediction, pays))
    return sorted(tried, key=lambda each: -each.prediction.windows_per_s)


@dataclass(frozen=True)
class Costs:
    """Of a frame in the present way and in another: seconds to make it, bytes stored."""

    seconds: tuple[float, float]
    stored: tuple[float, float]


def try_codec(sample: EpisodeStream, frames: list[tuple[Feature, bytes]], codec: Codec) -> Costs | None:
    """What a frame costs now, and would in another codec at the size that is streamed.

    None if the frames cannot be packed so, or are so already.
    """
    present: list[tuple[FrameDecoder, bytes]] = []
    other: list[tuple[FrameDecoder, bytes]] = []
    for feature, data in frames:
        shown = sample.job.frames.shown(feature)
        if not jpeg_can_hold(feature.dtype, feature.shape[2]) or (feature.codec, feature.shape) == (codec, shown.shape):
            return None
        decoder = FrameDecoder(feature, shown.shape)
        image: NDArray[Any] = np.empty(shown.shape, feature.dtype)
        decoder.decode(data, image, feature.name)
        wanted = replace(shown, codec=codec, jpeg_channels="rgb" if codec == "jpeg" else None)
        present.append((decoder, data))
        other.append((FrameDecoder(wanted, wanted.shape), encode_frame(wanted, image)))
    return Costs((_seconds(present), _seconds(other)), (_mean_size(present), _mean_size(other)))


def _seconds(frames: list[tuple[FrameDecoder, bytes]]) -> float:
    """Median seconds of one frame, into memory that is used again."""
    buffers = [np.zeros(decoder.shape, decoder.feature.dtype) for decoder, _ in frames]
    times = []
    for _ in range(7):
        began = time.perf_counter()
        for (decoder, data), out in zip(frames, buffers, strict=True):
            decoder.decode(data, out, decoder.feature.name)
        times.append((time.perf_counter() - began) / len(frames))
    return sorted(times)[3]


def _mean_size(frames: list[tuple[FrameDecoder, bytes]]) -> float:
    return sum(len(data) for _, data in frames) / len(frames)


def with_costs(found: Survey, sample: EpisodeStream, costs: Costs) -> Survey:
    """The survey as it would be with frames of other costs; all else that a window costs stays."""
    job = sample.job
    per_window = sum(len(job.window.offsets(f.name)) for f in job.features.values() if f.kind == "frames")
    before, after = costs.seconds
    alone = found.alone["processes"].windows_per_s

    def scaled(rate: LoadRate) -> LoadRate:
        seconds = rate.number / rate.windows_per_s  # of one worker for one window
        # A worker among others is slower than one alone, also with other frames.
        ours = 1 / alone
        changed = (ours + per_window * (after - before)) * seconds / ours
        # Measurements of so little time may contradict each other; nothing becomes 50 times faster.
        return replace(rate, windows_per_s=rate.number / max(changed, 0.02 * seconds))

    return replace(
        found,
        alone={kind: scaled(rate) for kind, rate in found.alone.items()},
        together={kind: scaled(rate) for kind, rate in found.together.items()},
        dataset_bytes=int(found.dataset_bytes * costs.stored[1] / costs.stored[0]),
    )


def is_hdf5(stream: EpisodeStream) -> bool:
    """Whether the stream reads HDF5 files as they are."""
    return not is_tar(stream.job.dataset.shard_url[0])


def packed_survey(
    found: Survey, base: Config, sample: EpisodeStream, seconds: float, say: Callable[[str], None]
) -> Survey | None:
    """The survey as it would be with the HDF5 files packed by default options: some of them are, and are measured.

    None if they cannot be packed.
    """
    dataset = sample.job.dataset
    sizes = np.cumsum(dataset.shard_bytes)
    number = min(dataset.num_shards, max(1, int(np.searchsorted(sizes, _PACK_BYTES))))
    urls = list(dict.fromkeys(dataset.shard_url[index] for index in range(number)))
    tried = sum(int(size) for url, size in zip(dataset.shard_url, dataset.shard_bytes, strict=True) if url in urls)
    with tempfile.TemporaryDirectory(prefix="epistream-tune-") as folder:
        say(f"packing {len(urls)} files to compare")
        out = Path(folder) / "shards"
        try:
            pack(urls, out, layout=chosen_layout(base.settings.stream.layout))
            # Shards need no layout any more.
            stream = EpisodeStream.from_config(base, str(out), **{**PLAIN, "split": None, "layout": None})
        except EpistreamError:
            return None
        say("reading what was packed")
        kind: Kind = "processes"
        rate = measure_loading(stream, found.num_cores, kind, seconds)
        packed = int(stream.job.dataset.shard_bytes.sum())
        stream.job.cache.close()
    gain = rate.windows_per_s / found.together[kind].windows_per_s
    return replace(
        found,
        alone={k: replace(r, windows_per_s=r.windows_per_s * gain) for k, r in found.alone.items()},
        together={k: replace(r, windows_per_s=r.windows_per_s * gain) for k, r in found.together.items()},
        dataset_bytes=int(found.dataset_bytes * packed / tried),
    )
