"""Episodes of counted frames: HDF5 files to pack, and tars of others with videos in them."""

import h5py
import numpy as np
from handmade import npy, write_tar
from hdf5_files import jpeg, numbers
from video.clips import counted, encoded

CAMERAS = ("observation.images.angle", "observation.images.top")


def first_number(episode, camera):
    """What the first frame of an episode's camera shows; the following ones count on."""
    return 1000 * episode + 500 * CAMERAS.index(camera)


def counted_hdf5(path, steps, episode=0, size=(64, 64), *, as_jpeg=False):
    """An ALOHA file whose frames show their numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        lengths = []
        for camera in CAMERAS:
            first = first_number(episode, camera)
            frames = [counted(first + step, *size) for step in range(steps)]
            if as_jpeg:
                rows = [jpeg(frame, 95) for frame in frames]
                lengths.append([len(row) for row in rows])
                frames = [np.frombuffer(row.ljust(max(lengths[-1]) + 5, b"\0"), np.uint8) for row in rows]
            file[f"observations/images/{camera.rpartition('.')[2]}"] = np.stack(frames)
        if as_jpeg:
            file.attrs["compress"] = True
            file["compress_len"] = np.array(lengths, np.float32)
        file["observations/qpos"] = numbers(steps, 14, episode)
        file["observations/qvel"] = numbers(steps, 14, episode + 1)
        file["action"] = numbers(steps, 14, episode + 2)
    return path


def counted_folder(folder, lengths, **how):
    """A folder of `counted_hdf5`, one file for each of `lengths`."""
    for episode, steps in enumerate(lengths):
        counted_hdf5(folder / f"episode_{episode}.hdf5", steps, episode, **how)
    return folder


def foreign_pairs(key, num_frames, name="h264", camera="observation.images.top", **how):
    """(name, bytes) of an episode as others write it: rows, and a video of counted frames."""
    rows = np.arange(num_frames * 3, dtype=np.float32).reshape(num_frames, 3)
    return [(f"{key}.action.npy", npy(rows)), (f"{key}.{camera}.mp4", encoded(name, num_frames, **how))]


def foreign_tar(path, episodes):
    """A tar of `foreign_pairs`, one for each of `episodes`."""
    return write_tar(path, [pair for episode in episodes for pair in episode])
