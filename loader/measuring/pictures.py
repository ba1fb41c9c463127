"""What pictures cost in another form: bytes, loss and time of JPEG and of H.264, measured on a dataset's own frames."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from epistream.errors import OptionError
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.frames.frames import draw_frames
from epistream.loader.reading.job import ReadJob
from epistream.loader.shards.shard_entry import read_index, shard_entry
from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.pictures.codecs import CODECS, DEFAULT_CODEC
from epistream.sharding.pictures.fidelity import Fidelity
from epistream.sharding.pictures.video import VideoDecoder, pyav
from epistream.sharding.pictures.video_encoder import VideoEncoder, VideoQuality

# Neighbouring steps of an episode: two of the longer groups.
_STEPS = 60
_EPISODES = 3
_PIECE_BYTES = 128 << 20

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class PictureCost:
    """The colour cameras of a dataset in one form; those that have it already stay as they are stored.

    Attributes:
        name: of the form, in words.
        group_steps: frames of a group of pictures; None where each frame decodes alone.
        is_video: whether a form of its own was made, as video.
        num_frames: measured.
        bytes_per_frame: on average over the cameras.
        psnr_db: of the mean squared error beside the frames as they are stored; None where nothing was lost.
        worst_psnr_db: of the frame that lost most.
        encode_frames_per_s: of one core; None where nothing was encoded.
        decode_ms: CPU time of a frame, of frames in order.
        dataset_bytes: of the whole dataset so.
        pool_bytes: memory of a node for decoded blocks, in the order that would be used; 0 for windows by themselves.
    """

    name: str
    group_steps: int | None
    is_video: bool
    num_frames: int
    bytes_per_frame: float
    psnr_db: float | None
    worst_psnr_db: float | None
    encode_frames_per_s: float | None
    decode_ms: float
    dataset_bytes: int
    pool_bytes: int = 0


@dataclass
class _Measured:
    """Sums over frames of one camera in one form."""

    num_frames: int = 0
    num_bytes: int = 0
    fidelity: Fidelity = field(default_factory=Fidelity)
    encode_s: float = 0.0
    decode_s: float = 0.0

    def lose(self, frames: Frames, decoded: Frames) -> None:
        for frame, again in zip(frames, decoded, strict=True):
            self.fidelity.compare(frame, again)


@dataclass(frozen=True)
class _Form:
    """A form that cameras may be brought into."""

    name: str
    codec: str
    video: VideoQuality | None = None

    def is_for(self, camera: Feature) -> bool:
        """Whether the camera has not this form, or a like one, already."""
        stored = CODECS[camera.codec]
        return stored.storage != "video" if self.video else stored.name != self.codec

    def group_steps(self, camera: Feature) -> int:
        """Of the camera in this form, or as it is; 0 where frames decode alone."""
        if self.is_for(camera):
            return self.video.gop if self.video else 0
        return camera.group_steps or 0

    def measure(self, camera: Feature, frames: Frames, sums: _Measured) -> None:
        """Encode frames (N, H, W, 3) and decode them again."""
        decoded = np.full_like(frames, 0)  # memory that was touched before: a batch's is, too
        sums.num_frames += len(frames)
        (self._as_video if self.video else self._as_pictures)(camera, frames, decoded, sums)
        sums.lose(frames, decoded)

    def _as_pictures(self, camera: Feature, frames: Frames, decoded: Frames, sums: _Measured) -> None:
        codec = codec_of(replace(camera, codec=self.codec, jpeg_channels="rgb", group_steps=None))
        began = time.thread_time()
        encoded = [codec.encode(frame) for frame in frames]
        between = time.thread_time()
        for data, out in zip(encoded, decoded, strict=True):
            codec.decode_into(data, out, camera.name)
        sums.decode_s += time.thread_time() - between
        sums.encode_s += between - began
        sums.num_bytes += sum(map(len, encoded))

    def _as_video(self, camera: Feature, frames: Frames, decoded: Frames, sums: _Measured) -> None:
        began = time.thread_time()
        encoder = VideoEncoder(camera.name, camera.shape, camera.fps, self.video or VideoQuality())
        for frame in frames:
            encoder.add(frame)
        video = encoder.finish()
        between = time.thread_time()
        table, data = video.table, memoryview(video.data)
        offset, size = table.offset.tolist(), table.size.tolist()
        packets = ((step, data[offset[step] :][: size[step]]) for step in range(len(frames)))
        pictures = VideoDecoder(camera.shape).pictures(table.stream, packets, range(len(frames)), camera.name)
        for step, picture in pictures:
            decoded[step] = picture
        sums.decode_s += time.thread_time() - between
        sums.encode_s += between - began
        sums.num_bytes += sum(size)


@dataclass
class Comparison:
    """Measures pieces of a job's episodes in all forms that are worth a look.

    Args:
        job: of a sample; frames are of the size that it streams.
        cameras: colour cameras of bytes, as they are stored.
        forms: beside that in which they are stored.
    """

    job: ReadJob
    cameras: Sequence[Feature]
    forms: Sequence[_Form]
    stored: dict[str, _Measured] = field(default_factory=dict)
    sums: dict[tuple[str, str], _Measured] = field(default_factory=dict)

    def measure(self, seconds: float) -> None:
        """Measure a piece of each camera, and others for as long as there is time."""
        job = self.job
        shards = np.flatnonzero(job.part.plan.per_shard > 0)
        used = np.flatnonzero(np.isin(job.dataset.episode_shard, shards))
        places = np.linspace(0, len(used) - 1, min(_EPISODES, len(used))).round().astype(int)
        until = time.monotonic() + seconds
        for number, episode in enumerate(used[places].tolist()):
            for camera in self.cameras:
                if number == 0 or time.monotonic() < until:
                    self._measure_piece(camera, episode)

    def _measure_piece(self, camera: Feature, episode: int) -> None:
        shown = self.job.part.frames.shown(camera)
        length = int(self.job.dataset.episode_length[episode])
        num_steps = max(1, min(_STEPS, length, _PIECE_BYTES // shown.step_bytes))
        frames = self._read(camera, shown, episode, np.arange(num_steps) + (length - num_steps) // 2)
        for form in self.forms:
            if form.is_for(camera):
                form.measure(shown, frames, self.sums.setdefault((form.name, camera.name), _Measured()))

    def _read(self, camera: Feature, shown: Feature, episode: int, steps: NDArray[np.int64]) -> Frames:
        """Frames (N, H, W, 3) as they are streamed; what that takes is what is stored costs."""
        dataset = self.job.dataset
        shard = int(dataset.episode_shard[episode])
        source = shard_entry(dataset, shard)
        sums = self.stored.setdefault(camera.name, _Measured())
        frames = np.full((len(steps), *shown.shape), 0, np.uint8)
        with closing(self.job.cache.open(source)) as entry:
            index = read_index(entry.blobs[1], source, dataset.names_in(shard))
            rows = steps + int(index.first_row[dataset.episode_in_shard[episode]])
            sizes = index.frame_size.get(camera.name)
            sums.num_bytes += camera.step_bytes * len(rows) if sizes is None else int(sizes[rows].sum())
            began = time.thread_time()
            draw_frames(entry.blobs[0], index, FrameDecoder(camera, shown.shape), rows, frames, np.arange(len(rows)))
            sums.decode_s += time.thread_time() - began
        sums.num_frames += len(rows)
        return frames

    def rows(self, whole: ReadJob, dataset_bytes: int) -> Iterator[PictureCost]:
        """What is stored, and each form that changes a camera.

        Args:
            whole: of all of the dataset.
            dataset_bytes: of its shards.
        """
        used = whole.part.plan.per_shard[whole.dataset.episode_shard] > 0
        num_steps = int(whole.dataset.episode_length[used].sum())
        now = list(self.stored.values())
        step_bytes = sum(sums.num_bytes / sums.num_frames for sums in now)
        codecs = ", ".join(dict.fromkeys(camera.codec for camera in self.cameras))
        longest = max((camera.group_steps or 0 for camera in self.cameras), default=0)
        yield _row(f"as stored ({codecs})", (longest or None, False), now, (), dataset_bytes)
        for form in self.forms:
            new = {name: sums for (of, name), sums in self.sums.items() if of == form.name}
            if not new:
                continue
            then = [new.get(name, sums) for name, sums in self.stored.items()]
            grown = sum(sums.num_bytes / sums.num_frames for sums in then) - step_bytes
            longest = max(form.group_steps(camera) for camera in self.cameras)
            yield _row(
                form.name,
                (longest or None, form.video is not None),
                then,
                list(new.values()),
                max(0, int(dataset_bytes + grown * num_steps)),
            )


def compare_pictures(
    sample: ReadJob, whole: ReadJob, dataset_bytes: int, seconds: float, say: Callable[[str], None] = lambda text: None
) -> tuple[list[PictureCost], str | None]:
    """Measure some neighbouring steps of some episodes in each form; on one core.

    Cameras are brought into forms at the size that is streamed: JPEG where they have another, and H.264 in groups of
    30, and of 8 where windows show several steps.

    Args:
        sample: a part of the dataset.
        whole: all of it.
        dataset_bytes: of its shards.
        seconds: about; a piece of each camera is measured in any case.
        say: told what is done next.

    Returns:
        What is stored first, and then the forms; none without colour cameras. And what is missing to look at H.264.
    """
    features = sample.features.values()
    cameras = [f for f in features if f.kind == "frames" and f.dtype == "uint8" and f.shape[2] == 3]
    if not cameras:
        return [], None
    several = any(len(sample.part.window.offsets(camera.name)) > 1 for camera in cameras)
    quality = VideoQuality()
    missing = None
    forms = [_Form("JPEG", DEFAULT_CODEC.name)]
    try:
        pyav()
    except OptionError:
        missing = "pip install 'epistream[video]' would allow to compare H.264, which is a fraction of JPEG's size"
    else:
        groups = (quality.gop, 8) if several else (quality.gop,)
        videos = [replace(quality, gop=gop) for gop in groups]
        forms += [_Form(f"H.264, crf {video.crf}, groups of {video.gop}", "h264", video) for video in videos]
        say("encoding frames as video")
    compared = Comparison(sample, cameras, forms)
    compared.measure(seconds)
    return list(compared.rows(whole, dataset_bytes)), missing


def _row(
    name: str,
    groups: tuple[int | None, bool],
    cameras: Sequence[_Measured],
    new: Sequence[_Measured],
    dataset_bytes: int,
) -> PictureCost:
    num_new, lost = sum(sums.num_frames for sums in new), Fidelity()
    for sums in new:
        lost.add(sums.fidelity)
    encode_s = sum(sums.encode_s for sums in new)
    return PictureCost(
        name=name,
        group_steps=groups[0],
        is_video=groups[1],
        num_frames=sum(sums.num_frames for sums in cameras),
        bytes_per_frame=sum(sums.num_bytes / sums.num_frames for sums in cameras) / len(cameras),
        psnr_db=lost.mean_psnr_db if lost.worst else None,
        worst_psnr_db=lost.worst_psnr_db if lost.worst else None,
        encode_frames_per_s=num_new / max(encode_s, 1e-6) if new else None,
        decode_ms=sum(sums.decode_s / sums.num_frames for sums in cameras) / len(cameras) * 1000,
        dataset_bytes=dataset_bytes,
    )
