"""Windows given in seconds: from `delta_timestamps` and each feature's rate to step offsets."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from epistream.errors import OptionError
from epistream.loader.order.window import MOST, Window
from epistream.sharding.format.features import Feature
from epistream.units import distinct_numbers

# LeRobot's default: far below a step of any camera, far above what float64 seconds lose.
TOLERANCE_S = 1e-4


def window_in_seconds(
    delta_timestamps: Mapping[str, Collection[float]],
    features: Mapping[str, Feature],
    *,
    base: Window | None = None,
    fps: float | Mapping[str, float] | None = None,
    tolerance_s: float = TOLERANCE_S,
) -> Window:
    """A window whose offsets are given in seconds about the anchor, per feature; negative is history.

    Every feature has its own rate, so one call may ask for cameras at 10 Hz and actions at 50 Hz:

    | feature's fps | asked for        | step offsets |
    | ------------- | ---------------- | ------------ |
    | 50            | [-0.02, 0.0]     | [-1, 0]      |
    | 50            | [0.0, 0.1, 0.2]  | [0, 5, 10]   |
    | 30            | [0.0, 1/30]      | [0, 1]       |

    Args:
        delta_timestamps: seconds by feature name, ascending. A key may end in ``*``: it then stands for every
            feature that begins so and has no key of its own.
        features: of the dataset; their `fps` is the rate of their steps.
        base: gives everything but these offsets; ``Window()`` by default.
        fps: rates in Hz, for features whose source does not say one; one for all, or by name. They win.
        tolerance_s: how far from a recorded step a wanted time may lie, in seconds.

    Returns:
        `base` with the offsets as overrides.

    Raises:
        OptionError: a name that the dataset does not have, a rate that is unknown, or a time between two steps;
            the message gives the times that there are.
    """
    if not 0 <= tolerance_s < math.inf:
        raise OptionError(f"tolerance_s: {tolerance_s}, wanted 0 or more seconds.")
    base = base or Window()
    offsets: dict[str, tuple[int, ...]] = {}
    for name, seconds in _by_feature(delta_timestamps, features).items():
        rate = _rate(features[name], fps)
        offsets[name] = tuple(_step(name, float(second), rate, tolerance_s) for second in seconds)
        if len(set(offsets[name])) < len(offsets[name]):
            raise OptionError(
                f"delta_timestamps[{name!r}]: {list(seconds)[:8]} are the steps {list(offsets[name])[:8]} at "
                f"{rate:g} Hz, wanted each step once. Leave times out that fall on the same step."
            )
    return replace(base, overrides={**base.overrides, **offsets})


def _by_feature(
    delta_timestamps: Mapping[str, Collection[float]], features: Mapping[str, Feature]
) -> dict[str, Collection[float]]:
    exact = {name: seconds for name, seconds in delta_timestamps.items() if not name.endswith("*")}
    result: dict[str, Collection[float]] = {}
    for pattern in delta_timestamps:
        if pattern in exact:
            names = [pattern] if pattern in features else []
        else:
            names = [name for name in features if name.startswith(pattern[:-1]) and name not in exact]
        if not names:
            raise OptionError(
                f"delta_timestamps: {pattern!r} not among the streamed features {sorted(features)}. Name some of these."
            )
        for name in names:
            result[name] = delta_timestamps[pattern]
    return result


def _rate(feature: Feature, fps: float | Mapping[str, float] | None) -> float:
    given = fps.get(feature.name) if isinstance(fps, Mapping) else fps
    rate = feature.fps if given is None else given
    if rate is None:
        raise OptionError(
            f"delta_timestamps[{feature.name!r}]: the dataset does not say its rate, wanted steps per second. "
            "Give the window of window_in_seconds(..., fps=...), or pack again with --fps."
        )
    if not 0 < rate < math.inf:
        raise OptionError(f"fps of {feature.name}: {rate}, wanted a positive rate in Hz.")
    return float(rate)


def _step(name: str, seconds: float, rate: float, tolerance_s: float) -> int:
    if not abs(seconds) * rate < MOST:  # nor is NaN
        raise OptionError(f"delta_timestamps[{name!r}]: {seconds}, wanted seconds.")
    step = round(seconds * rate)
    away_s = abs(step / rate - seconds)
    if away_s > tolerance_s:
        below = math.floor(seconds * rate)
        given, before, after = distinct_numbers(seconds, below / rate, (below + 1) / rate)
        raise OptionError(
            f"delta_timestamps[{name!r}]: {given} s is no step at {rate:g} Hz; the nearest are {before} s "
            f"and {after} s. Take one of these, or a tolerance_s of {_rounded_up(away_s):g} or more."
        )
    return step


def _rounded_up(seconds: float) -> float:
    """With two digits, and not less: who takes it must get further."""
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return math.ceil(seconds / unit) * unit
