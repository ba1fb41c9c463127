"""The shape of the statistics in a manifest: which numbers there are, of which features, and when they are whole."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.sharding.format.features import Feature
from epistream.sharding.format.statistics import QUANTILES

Array = NDArray[np.float64]

# Each has the shape of one step, as nested lists (a number for a feature without axes). Quantiles may be missing
# (a feature with very many dimensions has none), and `finite`, the finite values of each dimension, when it is
# `count` everywhere.
_REQUIRED = ("mean", "std", "min", "max")
_KNOWN = frozenset({"count", "finite", *_REQUIRED, *QUANTILES})


def statistics_problem(statistics: Mapping[str, Mapping[str, Any]], features: Mapping[str, Feature]) -> str | None:
    """The first thing wrong with the statistics of a manifest, or None.

    `count` is the number of steps they were computed on. A number that is not finite is stored as null, because
    JSON has no other word for it; numpy reads null as NaN.
    """
    for name, values in statistics.items():
        if name not in features or features[name].kind != "array":
            return f"statistics of {name!r:.80}, wanted array features only"
        if not isinstance(values, Mapping) or not {"count", *_REQUIRED} <= set(values) <= _KNOWN:
            return f"statistics of {name}: {list(values)!r:.200}, wanted count, mean, std, min, max, q01, q99"
        if type(values["count"]) is not int or values["count"] < 1:
            return f"statistics of {name}: count {values['count']!r:.40}, wanted at least 1"
        for key in set(values) - {"count"}:
            try:
                shape = np.asarray(values[key], np.float64).shape
            except (TypeError, ValueError):
                return f"statistics of {name}: {key} {values[key]!r:.80}, wanted numbers or null"
            if shape != features[name].shape:
                return f"statistics of {name}: {key} of shape {shape}, wanted {features[name].shape}"
    return None


def merge_statistics(parts: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Statistics of several datasets together, for the features that all of them have.

    count, mean, std, min and max are those of all steps. The quantiles cannot be had from quantiles: they are the
    mean of the parts' quantiles, weighted by steps.
    """
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: _merge([part[name] for part in parts]) for name in names}


def _merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def stack(key: str) -> Array:
        return np.array([part[key] for part in parts], np.float64)

    columns = {key: stack(key) for key in _REQUIRED}
    columns |= {key: stack(key) for key in QUANTILES if all(key in part for part in parts)}
    shape = columns["mean"].shape[1:]
    count = sum(part["count"] for part in parts)
    finite = np.array([np.broadcast_to(part.get("finite", part["count"]), shape) for part in parts], np.float64)
    known = finite.sum(axis=0)
    weight = finite / np.maximum(known, 1)

    def pooled(values: Array) -> Array:
        # A part without finite values has NaN for everything, and weighs nothing.
        total: Array = np.sum(weight * np.where(finite > 0, values, 0), axis=0)
        return total

    mean = pooled(columns["mean"])
    merged = {
        "mean": mean,
        # Variance of the whole: what is within the parts, and what is between them.
        "std": np.sqrt(pooled(columns["std"] ** 2 + (columns["mean"] - mean) ** 2)),
        "min": np.where(finite > 0, columns["min"], np.inf).min(axis=0),
        "max": np.where(finite > 0, columns["max"], -np.inf).max(axis=0),
        **{key: pooled(columns[key]) for key in QUANTILES if key in columns},
    }
    result: dict[str, Any] = {"count": count}
    if (known != count).any():
        result["finite"] = known.astype(np.int64).tolist()
    plain = {key: np.asarray(np.where(known > 0, values, None)) for key, values in merged.items()}
    return result | {key: values.tolist() for key, values in plain.items()}
