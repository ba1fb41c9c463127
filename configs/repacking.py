"""Whether packing would pay: some HDF5 files are packed and read, and what H.264 would save is said of any source."""

import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.access import without_secrets
from epistream.configs.config import Config
from epistream.configs.prediction import Prediction
from epistream.configs.survey import ALL_OF_IT, Survey, scaled
from epistream.errors import EpistreamError
from epistream.loader.measuring.blocks import measuring_order, warm_up_batches
from epistream.loader.measuring.pictures import PictureCost
from epistream.loader.measuring.rates import WARM_UP, Kind, measure_loading
from epistream.loader.stream import EpisodeStream, Source
from epistream.sharding.files.names import is_episode_url, is_tar
from epistream.sharding.layouts.layout_file import chosen_layout
from epistream.sharding.pack.pack import pack
from epistream.units import distinct_sizes, size_text

# Packing is work and another copy of the data: only for this much more speed.
WORTH = 1.3
_PACK_BYTES = 64 << 20
# Files are encoded as video for no longer than about this.
_ENCODE_S = 8.0
# Another copy of the data, and a loss: only for this much less.
_WORTH_ENCODING = 0.7


@dataclass(frozen=True)
class Alternative:
    """One way to pack.

    Attributes:
        name: in words.
        dataset_bytes: of the whole dataset, about.
        prediction: with it.
        pays: whether it is worth the work.
    """

    name: str
    dataset_bytes: int
    prediction: Prediction
    pays: bool


@dataclass(frozen=True)
class PackTrial:
    """Packs some HDF5 files, and measures what reading them would be like.

    Args:
        found: what was measured of the files as they are.
        base: what is streamed.
        sample: of the files.
        seconds: of a measurement.
        say: told what is done next.
    """

    found: Survey
    base: Config
    sample: EpisodeStream
    seconds: float
    say: Callable[[str], None]

    def by_default(self) -> Survey | None:
        """The survey as it would be with all files packed by default options; None if they cannot be packed."""
        dataset = self.sample.job.dataset
        number = max(1, int(np.searchsorted(np.cumsum(dataset.shard_bytes), _PACK_BYTES)))
        urls = list(dict.fromkeys(dataset.shard_url[:number]))
        return self._packed(urls, {}, {}, f"packing {len(urls)} files to compare")

    def as_video(self, form: PictureCost) -> Survey | None:
        """The same for H.264 read by blocks, of as many files as are encoded in time; None if not even one is.

        Args:
            form: what it costs.
        """
        job = self.sample.job
        cameras = [feature for feature in job.features.values() if feature.kind == "frames"]
        shown_bytes = sum(job.part.frames.shown(camera).step_bytes for camera in cameras)
        per_s = (form.encode_frames_per_s or 0.0) * shown_bytes / sum(camera.step_bytes for camera in cameras)
        urls: list[str] = []
        num_frames = 0
        shard_url = np.array(job.dataset.shard_url)
        steps: list[NDArray[np.int64]] = []
        for url in dict.fromkeys(job.dataset.shard_url):
            steps_of_file = job.dataset.episode_length[shard_url[job.dataset.episode_shard] == url]
            num_frames += int(steps_of_file.sum()) * len(cameras)
            if num_frames > per_s * _ENCODE_S:
                break
            urls.append(url)
            steps.append(steps_of_file)
        if not urls:
            return None
        order = measuring_order(np.concatenate(steps), None, form.group_steps)
        said = f"packing {len(urls)} files as video to compare"
        return self._packed(urls, {"codec": "h264", "gop": form.group_steps}, {"order": order, "decode": "auto"}, said)

    def _packed(self, urls: list[str], how: dict[str, Any], read: dict[str, Any], said: str) -> Survey | None:
        found, stream = self.found, self.base.settings.stream
        dataset = self.sample.job.dataset
        pairs = zip(dataset.shard_url, dataset.shard_bytes, strict=True)
        tried = sum(int(size) for url, size in pairs if url in urls)
        with tempfile.TemporaryDirectory(prefix="epistream-tune-") as folder:
            self.say(said)
            out = Path(folder) / "shards"
            try:
                pack(
                    urls,
                    out,
                    layout=chosen_layout(stream.layout),
                    allow_outside_files=stream.allow_outside_files,
                    **how,
                )
                # Shards need no layout any more.
                packed = EpisodeStream.from_config(self.base, str(out), **{**ALL_OF_IT, "layout": None, **read})
            except EpistreamError:
                return None
            self.say("reading what was packed")
            kind: Kind = "processes"
            warm_up = warm_up_batches(packed.job, found.num_cores, WARM_UP)
            rate = measure_loading(packed, found.num_cores, kind, self.seconds, warm_up)
            packed_bytes = int(packed.job.dataset.shard_bytes.sum())
            packed.job.cache.close()
        return scaled(
            found,
            rate.windows_per_s / found.together[kind].windows_per_s,
            dataset_bytes=int(found.dataset_bytes * packed_bytes / tried),
            more_frames=found.more_frames if packed.job.part.plan.blocks is None else 1.0,
        )


def alternatives(trial: PackTrial, pictures: Sequence[PictureCost]) -> list[tuple[str, Survey, int]]:
    """Ways to pack HDF5 files: name, the survey with it, and memory of a node for decoded blocks. None for others.

    Of LeRobot data sets packing copies packets, which come as fast from where they are.
    """
    dataset = trial.sample.job.dataset
    if is_tar(dataset.shard_url[0]) or any(map(is_episode_url, dataset.index_url)):
        return []
    ways = []
    packed = trial.by_default()
    if packed is not None:
        ways.append(("packed with the defaults", packed, 0))
    video = _as_video(pictures)
    packed = None if video is None else trial.as_video(video)
    if video is not None and packed is not None:
        # The measured share of all forms, not that of the few files that were encoded.
        packed = replace(packed, dataset_bytes=video.dataset_bytes)
        ways.append((f"packed as H.264, groups of {video.group_steps}, by blocks", packed, video.pool_bytes))
    return ways


def video_note(
    pictures: Sequence[PictureCost], whole: EpisodeStream, source: Source | None, shared_by_pages: bool, room: int
) -> str | None:
    """When H.264 pays, and how to pack it; None where it was not looked at.

    Args:
        pictures: what was measured: as stored first.
        whole: the dataset.
        source: as the user named it.
        shared_by_pages: whether shards are read from a disk of this machine, by the page cache.
        room: bytes of memory for shards and decoded frames.
    """
    video = _as_video(pictures)
    if video is None:
        return None
    stored = pictures[0]
    now, then = distinct_sizes(stored.dataset_bytes, video.dataset_bytes)
    loss = "" if video.psnr_db is None else f", {video.psnr_db:.1f} dB beside the frames as stored"
    if video.worst_psnr_db is not None:
        loss += f" ({video.worst_psnr_db:.1f} the worst)"
    size = f"as H.264 in groups of {video.group_steps} the dataset takes {then} instead of {now}{loss}"
    if video.dataset_bytes > _WORTH_ENCODING * stored.dataset_bytes:
        return f"{size}: not worth another copy of it"
    if stored.dataset_bytes > room >= video.dataset_bytes + video.pool_bytes:
        pays = f"it pays: with the pool of its blocks that fits {size_text(room)} of memory, and now it does not"
    elif shared_by_pages:
        pays = "it pays where disks are short or slow, or memory does not hold the dataset"
    else:
        pays = "it pays: shards that come over a network come as many times faster"
    # Shards are not packed again, and many files are no command.
    can_be_named = isinstance(source, str) and not is_tar(whole.job.dataset.shard_url[0])
    named = shlex.quote(without_secrets(source)) if isinstance(source, str) and can_be_named else "RECORDINGS"
    return (
        f"{size}; {pays}. A pool of decoded blocks takes {size_text(video.pool_bytes)}. Pack with: epistream pack "
        f"{named} OUT --codec h264 --crf 18 --gop {video.group_steps}"
    )


def _as_video(pictures: Sequence[PictureCost]) -> PictureCost | None:
    """The form of the longest groups that was encoded."""
    return max((row for row in pictures if row.is_video), key=lambda row: row.group_steps or 0, default=None)
