"""Everybody in the comparison: epistream, and each peer as its users run it and in its best form for speed.

All make the same batch: uint8 pictures (B, ..., H, W, 3), float32 state and actions. Two workers where nothing else is
said.
"""

from peers import hdf5, lerobot_images, ours, samples
from peers.contender import NUM_WORKERS, Contender, nothing_to_load

_EVERY = ("jpeg", "raw", "numbers")

CONTENDERS = (
    Contender("epistream, processes", "epistream", _EVERY, ours.load, ours.epistream(), in_ranks=True),
    Contender(
        "epistream, threads",
        "epistream",
        _EVERY,
        ours.load,
        ours.epistream(loader={"num_workers": 0, "num_threads": NUM_WORKERS}),
    ),
    Contender(
        "epistream, decoded once",
        "epistream",
        ("jpeg",),
        ours.load,
        ours.epistream(decode="once"),
        in_ranks=True,
        is_prepared=True,
    ),
    *samples.CONTENDERS,
    *lerobot_images.CONTENDERS,
    Contender("robomimic, chunk of 1", "robomimic", ("raw", "numbers"), hdf5.load_robomimic, hdf5.robomimic),
    Contender("h5py, the ACT way", "epistream", _EVERY, nothing_to_load, hdf5.act, in_ranks=True),
)


def contender_of(name: str) -> Contender:
    """By its name in the tables."""
    return next(contender for contender in CONTENDERS if contender.name == name)
