"""Writes one shard: episodes into a tar, their offsets into an index, both published when complete."""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError, LayoutError, PackError
from epistream.sharding.files.early_sync import EarlySync
from epistream.sharding.files.names import index_name, temporary_name
from epistream.sharding.format.episode_meta import EpisodeMeta, step_task_of
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.videos import join_videos
from epistream.sharding.pictures.codecs import CODECS
from epistream.sharding.pictures.video import VideoStream
from epistream.sharding.pictures.video_file import WholeVideo
from epistream.sharding.tar.npy import npy_header
from epistream.sharding.tar.tar_writer import MAX_MEMBER_BYTES, TarWriter, write_error

Frames = Iterable[Any]


def episode_key(episode_index: int) -> str:
    """What the members of an episode begin with: ``ep-000000123``."""
    return f"ep-{episode_index:09d}"


class ShardWriter:
    """Takes episodes one after the other, then publishes tar and index under their names, whole or not at all.

    Until `finish` both exist under temporary names that begin with a dot, which no reader and no glob takes for a
    shard, and no other writer has. A context manager: leaving it without `finish` removes them.

    Args:
        folder: An existing local folder.
        name: File name of the tar.
        features: Every episode has all of these.
    """

    def __init__(self, folder: Path, name: str, features: Mapping[str, Feature]) -> None:
        self.name = name
        self.features = dict(features)
        self._path = folder / name
        self._temporary = folder / temporary_name(name)
        self._episodes: list[EpisodeMeta] = []
        self._array_offset: dict[str, list[int]] = {n: [] for n, f in self.features.items() if f.kind == "array"}
        self._frame_offset: dict[str, list[int]] = {n: [] for n, f in self.features.items() if f.kind == "frames"}
        self._frame_size: dict[str, list[int]] = {n: [] for n in self._frame_offset}
        self._videos: dict[str, list[tuple[VideoStream, NDArray[np.uint32]]]] = {
            n: [] for n in self._frame_offset if CODECS[self.features[n].codec].storage == "video"
        }
        self._add_frames: dict[str, Callable[..., int]] = {
            "members": self._add_members,
            "array": self._add_pixels,
            "video": self._add_video,
        }
        self._file = self._temporary.open("w+b")
        self._tar = TarWriter(self._file)
        self._sync = EarlySync(self._file)

    @property
    def num_episodes(self) -> int:
        """Episodes written so far."""
        return len(self._episodes)

    def add(self, meta: EpisodeMeta, arrays: Mapping[str, NDArray[Any]], frames: Mapping[str, Frames]) -> None:
        """Write one episode. If it fails, the shard is as it was before.

        Args:
            meta: What is known of it.
            arrays: feature -> (length, ...) values.
            frames: camera -> its frames in order: encoded bytes where the codec stores members, one `WholeVideo` of
                them all where it stores video, else (H, W, C) arrays. Taken one at a time, so that they may be made on
                the way.

        Raises:
            LayoutError: If a feature is missing, has another shape or another number of steps than the episode.
            PackError: If the disk is full or fails.
        """
        num_bytes = self._tar.num_bytes
        try:
            self._write(meta, arrays, frames)
        except PackError:
            # The disk refuses: the whole shard goes.
            raise
        except BaseException:
            self._forget(num_bytes)
            raise
        self._episodes.append(meta)
        try:
            self._sync.grown(self._tar.num_bytes)
        except OSError as error:
            raise write_error(self._path, num_bytes, error) from error

    def finish(self) -> bytes:
        """Publish the shard: index first, then the tar, each by a rename after its bytes are on disk.

        Returns:
            The bytes of the index.

        Raises:
            PackError: If the disk is full or fails.
        """
        index_path = self._path.with_name(index_name(self.name))
        index_temporary = index_path.with_name(temporary_name(index_path.name))
        try:
            self._tar.finish()
            self._file.flush()
            self._sync.end()
            os.fsync(self._file.fileno())
            self._file.close()
            data = self._index().to_bytes()
            with index_temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            index_temporary.unlink(missing_ok=True)
            raise write_error(self._path, self._tar.num_bytes, error) from error
        except BaseException:
            index_temporary.unlink(missing_ok=True)
            raise
        index_temporary.replace(index_path)
        self._temporary.replace(self._path)
        return data

    def abort(self) -> None:
        """Remove what was written; harmless after `finish`."""
        # A buffer that cannot be flushed means a full disk, and the file goes anyway.
        with contextlib.suppress(OSError):
            self._sync.end()
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def _write(self, meta: EpisodeMeta, arrays: Mapping[str, NDArray[Any]], frames: Mapping[str, Frames]) -> None:
        key = episode_key(meta.episode_index)
        given = {*arrays, *frames}
        if given != set(self.features):
            raise LayoutError(f"{meta.source}: features {sorted(given)}, wanted {sorted(self.features)}")
        self._tar.add(f"{key}.meta.json", meta.to_json(self.features))
        for name, feature in self.features.items():
            if feature.kind == "array":
                self._add_array(key, feature, arrays[name], meta)
        for name, feature in self.features.items():
            if feature.kind == "frames":
                num_frames = self._add_frames[CODECS[feature.codec].storage](key, feature, frames[name], meta)
                if num_frames != meta.length:
                    raise LayoutError(f"{feature.source_path}: {num_frames} frames, wanted {meta.length}, one a step")

    def _add_array(self, key: str, feature: Feature, values: NDArray[Any], meta: EpisodeMeta) -> None:
        wanted = (meta.length, *feature.shape)
        if values.shape != wanted or values.dtype.name != feature.dtype:
            raise LayoutError(f"{feature.source_path}: {values.dtype} {values.shape}, wanted {feature.dtype} {wanted}")
        data = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        header = npy_header(feature, meta.length)
        offset = self._tar.begin(f"{key}.{feature.name}.npy", len(header) + data.nbytes)
        self._tar.write(header)
        self._tar.write(data.reshape(-1).view(np.uint8).data)
        self._array_offset[feature.name].append(offset + len(header))

    def _add_members(self, key: str, feature: Feature, frames: Iterable[bytes], meta: EpisodeMeta) -> int:
        offsets, sizes = self._frame_offset[feature.name], self._frame_size[feature.name]
        suffix = CODECS[feature.codec].suffixes[0]
        step = 0
        for step, data in enumerate(frames, 1):
            offsets.append(self._tar.add(f"{key}.{feature.name}.{step - 1:06d}{suffix}", data))
            sizes.append(len(data))
        return step

    def _add_pixels(self, key: str, feature: Feature, frames: Iterable[NDArray[Any]], meta: EpisodeMeta) -> int:
        """One member for the whole episode, or several of as many steps as a member can hold."""
        steps_each = max(1, (MAX_MEMBER_BYTES - 4096) // feature.step_bytes)
        is_split = meta.length > steps_each
        step = 0
        for step, frame in enumerate(frames, 1):
            if step > meta.length:
                break
            if (step - 1) % steps_each == 0:
                num_steps = min(steps_each, meta.length - step + 1)
                part = f".{step - 1:06d}" if is_split else ""
                header = npy_header(feature, num_steps)
                self._tar.begin(f"{key}.{feature.name}{part}.npy", len(header) + num_steps * feature.step_bytes)
                self._tar.write(header)
            if frame.shape != feature.shape or frame.dtype.name != feature.dtype:
                raise LayoutError(
                    f"{feature.source_path}, step {step - 1}: {frame.dtype} {frame.shape}, "
                    f"wanted {feature.dtype} {feature.shape}"
                )
            self._frame_offset[feature.name].append(self._tar.num_bytes)
            self._frame_size[feature.name].append(feature.step_bytes)
            data = np.ascontiguousarray(frame, frame.dtype.newbyteorder("<"))
            self._tar.write(data.reshape(-1).view(np.uint8).data)
        return step

    def _add_video(self, key: str, feature: Feature, frames: Iterable[WholeVideo], meta: EpisodeMeta) -> int:
        """One member for the whole episode."""
        [video] = frames
        if video.num_bytes > MAX_MEMBER_BYTES:
            raise LayoutError(
                f"{feature.source_path}: a video of {video.num_bytes:,} bytes, wanted at most {MAX_MEMBER_BYTES:,}"
            )
        offset = self._tar.begin(f"{key}.{feature.name}{CODECS[feature.codec].suffixes[0]}", video.num_bytes)
        for piece in video.pieces():
            self._tar.write(piece)
        self._frame_offset[feature.name] += (offset + video.table.offset.astype(np.int64)).tolist()
        self._frame_size[feature.name] += video.table.size.tolist()
        self._videos[feature.name].append((video.table.stream, video.table.back))
        return len(video.table.size)

    def _forget(self, num_bytes: int) -> None:
        """Take the episode out again that comes after `num_bytes` bytes."""
        self._tar.roll_back(num_bytes)
        num_rows = sum(meta.length for meta in self._episodes)
        for offsets in self._array_offset.values():
            del offsets[len(self._episodes) :]
        for rows in (*self._frame_offset.values(), *self._frame_size.values()):
            del rows[num_rows:]
        for videos in self._videos.values():
            del videos[len(self._episodes) :]

    def _index(self) -> ShardIndex:
        if not self._episodes:
            raise FormatError(f"{self.name}: no episodes, wanted at least one.")
        return ShardIndex(
            shard_name=self.name,
            shard_bytes=self._tar.num_bytes,
            shard_checksum=self._tar.hasher.checksum,
            features=self.features,
            keys=[episode_key(meta.episode_index) for meta in self._episodes],
            length=np.array([meta.length for meta in self._episodes], np.int64),
            array_offset={name: np.array(rows, np.uint64) for name, rows in self._array_offset.items()},
            frame_offset={name: np.array(rows, np.uint64) for name, rows in self._frame_offset.items()},
            frame_size={name: np.array(rows, np.uint32) for name, rows in self._frame_size.items()},
            episodes=self._episodes,
            block_checksums=self._tar.hasher.block_checksums,
            videos=join_videos(self._videos),
            step_task=step_task_of(self._episodes),
        )
