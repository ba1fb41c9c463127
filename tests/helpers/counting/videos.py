"""Datasets of videos whose pictures carry a counter, so that a shift by one frame is seen, and PyAV's own decoding."""

import io
import tarfile
from pathlib import Path

import h5py
import numpy as np

from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature
from epistream.sharding.pictures.video_encoder import EncodedVideo, VideoEncoder, VideoQuality
from epistream.sharding.pictures.video_file import read_video_table
from epistream.sharding.tar.shard_writer import ShardWriter

HEIGHT, WIDTH, BLOCK = 24, 32, 4
CAMERAS = ("observation.images.angle", "observation.images.top")
_BITS = 16


def counted(number):
    """A picture (24, 32, 3) that holds 16 bits in blocks of 4x4 pixels, above a gradient that moves."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    image = np.stack([rows * 8 + number, columns * 6, (rows + columns) * 3 + 5 * number], axis=-1) % 200
    for bit in range(_BITS):
        row, column = BLOCK * (bit // 8), BLOCK * (bit % 8)
        image[row : row + BLOCK, column : column + BLOCK] = 235 if number >> bit & 1 else 20
    return image.astype(np.uint8)


def counter_of(image):
    """What `counted` put into a picture (24, 32, 3), however lossy it became."""
    means = image[: 2 * BLOCK].reshape(2, BLOCK, 8, BLOCK, 3).mean((1, 3, 4)).reshape(-1)
    assert not ((means > 80) & (means < 170)).any(), means
    return sum(1 << bit for bit in np.flatnonzero(means > 128).tolist())


def number_of(camera, episode, step):
    return (CAMERAS.index(camera) << 14) + (episode << 8) + step


def write_episodes(folder, lengths):
    """HDF5 files of ALOHA with two cameras, wide enough that an episode of 40 steps fills a shard of 64 KiB."""
    folder.mkdir(parents=True, exist_ok=True)
    for episode, length in enumerate(lengths):
        with h5py.File(folder / f"episode_{episode}.hdf5", "w") as file:
            file.attrs["sim"] = True
            for camera in CAMERAS:
                pictures = [counted(number_of(camera, episode, step)) for step in range(length)]
                file[f"observations/images/{camera.rpartition('.')[2]}"] = np.stack(pictures)
            for name, width in (("observations/qpos", 500), ("observations/qvel", 14), ("action", 14)):
                file[name] = np.arange(length * width, dtype=np.float32).reshape(length, width)
    return folder


def decoded(shards):
    """(episode, camera) -> (T, H, W, 3): each MP4 of a folder of shards, decoded in order by PyAV alone."""
    import av

    pictures = {}
    for path in sorted(Path(shards).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".mp4"):
                    key, camera = member.name.removesuffix(".mp4").split(".", 1)
                    with av.open(io.BytesIO(tar.extractfile(member).read())) as video:
                        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
                    pictures[int(key.removeprefix("ep-")), camera] = np.stack(frames)
    return pictures


def encoded(numbers, gop):
    """An MP4 of counters as packing writes it."""
    encoder = VideoEncoder("camera", (HEIGHT, WIDTH, 3), 30.0, VideoQuality(gop=gop))
    for number in numbers:
        encoder.add(counted(number))
    return encoder.finish()


def with_b_frames(numbers, gop):
    """An MP4 of counters whose frames are not decoded in the order in which they are shown."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.options = {
            "crf": "12",
            "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=2:b-adapt=0:open-gop=0",
        }
        for number in numbers:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(counted(number), format="rgb24")))
        container.mux(stream.encode())
    return EncodedVideo(target.getvalue(), read_video_table(target, "camera"))


def write_shard(folder, videos, camera=CAMERAS[0], extra=None):
    """A shard and its index, one episode for each video; `extra` is another camera's feature and pictures."""
    group_steps = max(video.table.group_steps for video in videos)
    feature = Feature(camera, "frames", "uint8", (HEIGHT, WIDTH, 3), codec="h264", group_steps=group_steps)
    features = {camera: feature, "action": Feature("action", "array", "float32", (2,), codec="npy")}
    if extra is not None:
        features[extra[0].name] = extra[0]
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(folder, "shard-000000.tar", features) as writer:
        for episode, video in enumerate(videos):
            length = len(video.table.size)
            meta = EpisodeMeta(episode_index=episode, length=length, source="made")
            arrays = {"action": np.arange(length * 2, dtype=np.float32).reshape(length, 2)}
            frames = {camera: [video]}
            if extra is not None:
                frames[extra[0].name] = extra[1](length)
            writer.add(meta, arrays, frames)
        writer.finish()
    return folder
