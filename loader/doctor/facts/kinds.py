"""What a feature is by its name and type: a measurement or command, its rate, a time stamp, or a mark."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from epistream.sharding.format.features import Feature

# Wider ones, such as touch pads and embeddings, are not looked at: what is kept of each dimension would grow with them.
_MOST_DIMS = 256
_TIME = re.compile(r"(.*[._])?(time|time_?stamps?|timestamp_(s|ms|us|ns)|stamp)")
_MARK = re.compile(
    r"(.*[._])?(done|dones|reward|rewards|success|terminated|truncated|index|discount|is_\w+|next)([._].*)?"
)
_RATE = re.compile(r".*(vel|effort|torque|force|current|tactile|wrench)")
_STATE = "observation.state"


def width(feature: Feature) -> int:
    """Dimensions of a step, flattened."""
    return int(np.prod(feature.shape, dtype=np.int64))


def is_time(feature: Feature) -> bool:
    """Whether it is a time stamp a step."""
    return feature.kind == "array" and width(feature) == 1 and _TIME.fullmatch(feature.name) is not None


def is_mark(name: str) -> bool:
    """Whether it is no measurement: a reward, a counter, the end of an episode."""
    return _MARK.fullmatch(name) is not None


def is_rate(name: str) -> bool:
    """Whether it is a velocity or a force, which may change at once where a position cannot."""
    return _RATE.match(name) is not None


def measured_features(features: Mapping[str, Feature]) -> list[Feature]:
    """Those whose values are compared: measurements and commands."""
    return [
        one
        for one in features.values()
        if one.kind == "array"
        and np.dtype(one.dtype).kind in "fi"
        and width(one) <= _MOST_DIMS
        and not is_time(one)
        and not is_mark(one.name)
    ]


def states_of(names: Collection[str]) -> list[str]:
    """Features that say where a robot is."""
    if _STATE in names:
        return [_STATE]
    return [name for name in names if name.startswith("observation.") and not is_rate(name) and "object" not in name]


def actions_of(names: Collection[str]) -> list[str]:
    """Features that say what it is told to do."""
    return ["action"] if "action" in names else [name for name in names if name.startswith("action")]
