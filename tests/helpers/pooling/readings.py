"""Small episodes whose frames tell what they are, and readers of them with and without a pool of decoded blocks."""

from dataclasses import replace

import h5py
import numpy as np

import epistream as es
from epistream.cache.node import NodeCache
from epistream.loader.frames.block_pool_plan import PoolCounts, PoolPlan, pooled_cameras
from epistream.loader.frames.frames import FrameOptions
from epistream.loader.reading.batch_layout import BatchLayout
from epistream.loader.reading.reader import BatchWindows, EpisodeReader, ReaderOptions

LENGTHS = [1, 2, 9, 17, 40]
NUM_WINDOWS = sum(LENGTHS)
CAMERAS = ("observation.images.side", "observation.images.top")
SIZE = (24, 32)


def picture(episode, step, camera):
    """What a camera shows: which one it is, of which episode, and at which step."""
    frame = np.zeros((*SIZE, 3), np.uint8)
    frame[:] = 10 + 40 * episode, 5 * step, 100 * CAMERAS.index(camera)
    frame[:, : SIZE[1] // 2] += 3
    return frame


def record(folder):
    """Episodes as HDF5 files."""
    files = []
    for episode, length in enumerate(LENGTHS):
        files.append(folder / f"episode_{episode}.hdf5")
        with h5py.File(files[-1], "w") as file:
            file["action"] = np.arange(2 * length, dtype=np.float32).reshape(length, 2)
            file["observations/qpos"] = np.zeros((length, 2), np.float32)
            for camera in CAMERAS:
                frames = np.stack([picture(episode, step, camera) for step in range(length)])
                file[f"observations/images/{camera.rpartition('.')[2]}"] = frames
    return files


class Reading:
    """A reader of a dataset, with or without a pool, and the arrays of its batches."""

    def __init__(self, folder, directory=None, *, obs=range(-1, 1), pad="edge", size=None, plan=None, budget="64MiB"):
        self.dataset = es.open_dataset(folder)
        self.features = {name: self.dataset.features[name] for name in ("action", *CAMERAS)}
        self.window = es.Window(obs=obs, pad=pad)
        self.frames = FrameOptions(image_size=size, decode="per_read")
        mode = "off" if directory is None else "shm"
        self.cache = NodeCache(es.CacheOptions(mode=mode, directory=str(directory or ""), budget_bytes=budget))
        self.plan = None if plan is None else replace(plan, cameras=self.cameras(plan.block_steps), counts=PoolCounts())
        self.reader = EpisodeReader(
            self.dataset, self.features, self.window, self.cache, ReaderOptions(frames=self.frames, pool=self.plan)
        )

    def cameras(self, block_steps):
        return tuple(pooled_cameras(self.features, self.window, self.frames, block_steps))

    def read(self, windows, ends=None):
        """A batch of windows (episode, step)."""
        episode, step = np.array(windows, np.int64).T
        layout = BatchLayout.plan(self.frames.all_shown(self.features), self.window, len(step))
        out = layout.allocate()
        for array in out.values():
            array.reshape(-1).view(np.uint8)[:] = 0xAA
        dataset, zeros = self.dataset, np.zeros(len(step), np.int64)
        more = () if ends is None else (np.array(ends),)
        shard, within = dataset.episode_shard[episode], dataset.episode_in_shard[episode]
        self.reader.read(BatchWindows(shard, episode, within, step, zeros.astype(bool), zeros, *more), out)
        return out

    @property
    def stats(self):
        return self.plan.counts.stats()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.reader.close()
        self.cache.close()


def pool_of(block_steps=8, num_slots=16, **more):
    return PoolPlan((), block_steps, num_slots, "test", **more)


def permuted(seed=0):
    windows = [(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]
    return [windows[number] for number in np.random.default_rng(seed).permutation(len(windows))]


def by_blocks(block_steps, pool_blocks=4, seed=0):
    """All windows, drawn from so many blocks at a time, and whether each is the last of its block."""
    rng = np.random.default_rng(seed)
    waiting = {}
    for episode, step in permuted(seed):
        waiting.setdefault((episode, step // block_steps), []).append((episode, step))
    blocks = [waiting[key] for key in sorted(waiting, key=lambda _: rng.random())]
    open_, windows, ends = [], [], []
    while blocks or open_:
        while blocks and len(open_) < pool_blocks:
            open_.append(blocks.pop())
        chosen = open_[rng.integers(len(open_))]
        windows.append(chosen.pop())
        ends.append(not chosen)
        open_ = [block for block in open_ if block]
    return windows, ends


def read_all(reading, windows, ends, batch_size=7):
    return [
        reading.read(windows[at : at + batch_size], ends[at : at + batch_size])
        for at in range(0, len(windows), batch_size)
    ]


def assert_same(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name, array in batch.items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)


def expected_frames(windows, obs, pad, camera):
    def shown(episode, step):
        inside = min(max(step, 0), LENGTHS[episode] - 1)
        return picture(episode, inside, camera) * (pad == "edge" or inside == step)

    return np.stack([[shown(episode, step + offset) for offset in obs] for episode, step in windows])
