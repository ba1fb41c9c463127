"""HDF5 files of others that are no recordings in one of the layouts: recognised by a few names in them."""

from collections.abc import Callable

import h5py

from epistream.sharding.opening.walking import CANNOT_OPEN

_FILE = "Describe it by a layout file (epistream pack --layout-file, layout=)"


def _has(*paths: str) -> Callable[[h5py.File], bool]:
    return lambda file: all(path in file for path in paths)


def _says(*names: str) -> Callable[[h5py.File], bool]:
    return lambda file: any(name in file.attrs for name in names)


def _is_matlab(file: h5py.File) -> bool:
    return bool(file.userblock_size) and any("MATLAB_class" in file[key].attrs for key in list(file)[:8])


# How each is recognised, what it is, and what to do.
_KINDS: tuple[tuple[Callable[[h5py.File], bool], str, str], ...] = (
    (
        _has("action/joint_position", "observation/robot_state"),
        "DROID's raw trajectory.h5, whose pictures are videos beside it",
        f"{_FILE} for states and actions; for pictures too, decode the videos and write HDF5 with h5py (docs/hdf5.md, "
        "'Formats of others')",
    ),
    (
        _has("traj_0/actions"),
        "ManiSkill demonstrations",
        f"{_FILE} with 'episodes: traj_*'; without pictures they must be replayed with an observation mode first",
    ),
    (
        _is_matlab,
        "a MATLAB v7.3 file, whose arrays have their axes in reverse",
        "Write (steps, ...) arrays with h5py (docs/hdf5.md, 'Formats of others')",
    ),
    (_says("_NCProperties"), "netCDF 4", _FILE),
    (_says("PYTABLES_FORMAT_VERSION"), "PyTables or pandas", "Read it with pandas and write arrays with h5py"),
    (
        lambda file: "model_weights" in file or "layer_names" in file.attrs,
        "the weights of a Keras model",
        "Give the recordings instead",
    ),
)


def foreign_contents(file: h5py.File) -> str:
    """One or two sentences that end a message about a file that fits no layout; empty if nothing is known of it."""
    for matches, what, advice in _KINDS:
        try:
            if matches(file):
                return f"It looks like {what}. {advice}. "
        except CANNOT_OPEN:
            continue
    return ""
