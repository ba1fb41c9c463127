"""Depth maps as video: what the 12 bits of a pixel stand for, and the table that turns them into millimetres."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.pictures.codec import Frame

DEPTH_PIXELS = "gray12le"
_CODES = 1 << 12
_MM_PER_M = 1000
_MOST_M = 1e6  # which no number without end and none that is no number is less than
_MOST_MM = (1 << 16) - 1
_OF_LEROBOT = {
    "near_m": "video.depth_min",
    "far_m": "video.depth_max",
    "shift_m": "video.shift",
    "is_log": "video.use_log",
}


@dataclass(frozen=True)
class Depth:
    """How depth became codes of 12 bits: 0 is near, 4095 is far, and equal steps between, of depth or of its logarithm.

    The defaults are those of LeRobot 0.6, which leaves out of ``info.json`` what nobody said.

    Args:
        near_m: Depth of code 0, in metres.
        far_m: Depth of code 4095, in metres.
        shift_m: Added before the logarithm is taken, in metres.
        is_log: Whether steps are equal in the logarithm.

    Raises:
        FormatError: If no depth follows from them.
    """

    near_m: float = 0.01
    far_m: float = 10.0
    shift_m: float = 3.5
    is_log: bool = True

    def __post_init__(self) -> None:
        lengths = (self.near_m, self.far_m, self.shift_m)
        if not all(type(value) in (int, float) and abs(value) < _MOST_M for value in lengths):
            raise FormatError(
                f"depth from {self.near_m!r} to {self.far_m!r}, shifted by {self.shift_m!r}: not in metres"
            )
        if not 0 <= self.near_m < self.far_m or type(self.is_log) is not bool:
            raise FormatError(f"depth from {self.near_m} m to {self.far_m} m, wanted two that ascend from 0 or more")
        if self.is_log and self.near_m + self.shift_m <= 0:
            raise FormatError(f"depth from {self.near_m} m shifted by {self.shift_m} m, of which there is no logarithm")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for msgpack and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: object) -> "Depth":
        """The inverse of `to_dict`, for values from a file.

        Raises:
            FormatError: If it is no such thing.
        """
        if not isinstance(value, Mapping):
            raise FormatError(f"a description of depth is {value!r:.80}, wanted a map")
        try:
            return cls(**value)
        except TypeError as error:
            raise FormatError(f"a description of depth of {sorted(map(str, value))}, wanted {error}") from error

    def millimetres(self, frame: Any, shape: tuple[int, ...]) -> Frame:
        """A decoded frame of `DEPTH_PIXELS` as (H, W, 1) uint16; `shape` is at most its size."""
        plane, (height, width, _) = frame.planes[0], shape
        codes = np.frombuffer(plane, "<u2").reshape(plane.height, plane.line_size // 2)[:height, :width]
        return np.take(_table(self), codes, mode="clip")[..., np.newaxis]


def depth_of_lerobot(feature: Mapping[str, Any]) -> Depth | None:
    """What a feature of LeRobot's ``info.json`` says of its depth; None if it is no depth map.

    Raises:
        FormatError: If it says what cannot be.
    """
    info, old = feature.get("info"), feature.get("video_info")
    info, old = (value if isinstance(value, Mapping) else {} for value in (info, old))
    if not (info.get("is_depth_map") or info.get("video.is_depth_map") or old.get("video.is_depth_map")):
        return None
    found = {field: info.get(name) for field, name in _OF_LEROBOT.items()}
    return Depth(**{field: value for field, value in found.items() if value is not None})


def lerobot_depth(depth: Depth) -> dict[str, Any]:
    """What LeRobot's ``info.json`` says of a video of depth beside what it says of every video."""
    return {"is_depth_map": True, "depth_unit": "mm"} | {
        name: getattr(depth, field) for field, name in _OF_LEROBOT.items()
    }


@lru_cache(maxsize=64)
def _table(depth: Depth) -> NDArray[np.uint16]:
    """(4096,) millimetres of each code.

    In single precision and in these steps, as LeRobot's reader reckons: in double, a few codes are 1 mm off.
    """
    single = np.float32
    near, far = depth.near_m, depth.far_m
    if depth.is_log:
        near, far = math.log(near + depth.shift_m), math.log(far + depth.shift_m)
    metres = np.arange(_CODES, dtype=single) * single((far - near) / (_CODES - 1)) + single(near)
    if depth.is_log:  # the exponential rounded once, which single precision is on no two machines
        metres = np.exp(metres.astype(np.float64)).astype(single) - single(depth.shift_m)
    metres = np.clip(metres, single(depth.near_m), single(depth.far_m))
    table: NDArray[np.uint16] = np.clip(np.rint(metres * single(_MM_PER_M)), 0, _MOST_MM).astype(np.uint16)
    table.flags.writeable = False
    return table
