"""Finds features of which float32 cannot tell apart what was recorded, such as seconds since 1970."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.sharding.format.features import Feature

_log = logging.getLogger(__name__)

# Episodes of a feature that are looked at, and the steps of each: what they show holds for the others.
_MOST_LOOKS = 8
MOST_STEPS = 4096
# Noise of a simulated body at rest is smaller in relation to its place; a second of seconds since 1970 is larger.
_LEAST_SPREAD = 1e-10
# A body that moves goes through more steps of float32 than this in an episode, also if it rests for most of it.
_MOST_STEPS_APART = 4096
# Features that were warned of, for the rest of the process: its other streams would say the same of the same data.
WARNED: set[str] = set()


class PrecisionWatch:
    """Looks at the first episodes that a process reads, and warns once of each feature that loses its values.

    Args:
        features: that are read.
        dtypes: in which they are wanted, where that was said.
    """

    def __init__(self, features: Mapping[str, Feature], dtypes: Mapping[str, str]) -> None:
        self._looks = {
            name: _MOST_LOOKS
            for name, feature in features.items()
            if feature.kind == "array" and name not in WARNED and _may_lose(np.dtype(feature.dtype), dtypes.get(name))
        }

    @property
    def wanted(self) -> tuple[str, ...]:
        """Features of which another episode should be looked at."""
        return tuple(self._looks)

    def look(self, name: str, values: NDArray[Any], where: str) -> None:
        """Look at the values (T, ...) of following steps of an episode, as stored."""
        self._looks[name] -= 1
        is_lost = bool(loses_steps(values.reshape(len(values), -1)).any())
        if is_lost and name not in WARNED:
            WARNED.add(name)
            advice = f'Keep it with dtypes={{"{name}": "float64"}}'
            if values.dtype.kind == "f":
                advice += f', or say that float32 will do with dtypes={{"{name}": "float32"}}'
            _log.warning(
                "%s: %s is recorded as %s, and float32 cannot tell its steps apart (%s and the next are the same). %s.",
                where,
                name,
                values.dtype,
                np.format_float_positional(np.float64(values.reshape(-1)[0]), trim="-"),
                advice,
            )
        if is_lost or not self._looks[name]:
            del self._looks[name]


def loses_steps(values: NDArray[Any]) -> NDArray[np.bool_]:
    """(D,) whether float32 makes one of most of the different neighbours among values (T, D), and not of noise."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(np.float32)
        is_step = values[1:] != values[:-1]
        is_step &= np.isfinite(rounded[1:]) & np.isfinite(rounded[:-1])
        num_lost = (is_step & (rounded[1:] == rounded[:-1])).sum(axis=0)
        exact = np.where(np.isfinite(rounded), values, np.nan).astype(np.float64)
    # Not nanmax, which warns of columns without a value.
    largest = np.fmax.reduce(np.abs(exact), axis=0, initial=0.0)
    spread = np.fmax.reduce(exact, axis=0, initial=-np.inf) - np.fmin.reduce(exact, axis=0, initial=np.inf)
    one_apart = np.spacing(largest.astype(np.float32)).astype(np.float64)
    is_signal = (spread >= _LEAST_SPREAD * largest) & (spread <= _MOST_STEPS_APART * one_apart)
    lost: NDArray[np.bool_] = (num_lost > 0) & (2 * num_lost >= is_step.sum(axis=0)) & is_signal
    return lost


def _may_lose(stored: np.dtype[Any], wanted: str | None) -> bool:
    if wanted is None:
        return stored == np.float64
    return wanted == "float32" and stored.kind in "iu" and stored.itemsize >= 4
