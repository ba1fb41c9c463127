"""Normalisation of low-dimensional features by the dataset's statistics, and its inverse for what a policy returns."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epistream.errors import OptionError
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.dataset_statistics import moments_of

Mode = Literal["mean_std", "min_max", "quantiles"]
Statistics = Mapping[str, Mapping[str, Any]]

_log = logging.getLogger(__name__)

_NEEDED: dict[str, tuple[str, str]] = {
    "mean_std": ("mean", "std"),
    "min_max": ("min", "max"),
    "quantiles": ("q01", "q99"),
}
# A dimension that varies less than this never moved: dividing by it would turn noise into signal.
MIN_SCALE = 1e-8


@dataclass(frozen=True, eq=False)
class Affine:
    """``(x - shift) / scale`` of one feature; both float32, or float64 where it is, in the shape of one step."""

    mode: Mode
    shift: NDArray[np.floating[Any]]
    scale: NDArray[np.floating[Any]]


class Normalizer:
    """Normalises features of a batch, and takes it back.

    Each mode is affine and nothing is clipped, so every value can be taken back:

    | mode        | normalised                            | range of the data        |
    | ----------- | ------------------------------------- | ------------------------ |
    | mean_std    | (x - mean) / std                      | mean 0, deviation 1      |
    | min_max     | (x - (max + min)/2) / ((max - min)/2) | [-1, 1]                  |
    | quantiles   | likewise with q99 and q01             | 98 % of it in [-1, 1]    |

    A dimension that never moved, or of which nothing is known, is only shifted: its scale is 1.

    Attributes:
        affine: what is done, by feature.
    """

    def __init__(
        self,
        statistics: Statistics,
        modes: Mapping[str, Mode],
        *,
        min_std: float = MIN_SCALE,
        features: Mapping[str, Feature] | None = None,
        dtypes: Mapping[str, str] | None = None,
    ) -> None:
        """Take the shift and the scale of each feature from statistics.

        Args:
            statistics: by feature, as `Dataset.statistics`.
            modes: what to do with which feature.
            min_std: smaller deviations than this become it (ACT: 1e-2); those below 1e-8 become 1.
            features: when given, the shapes that the statistics must have.
            dtypes: ``"float64"`` for features that are to be normalised in it, as `StreamOptions` has them.

        Raises:
            OptionError: an unknown mode, or statistics that are not there or of another shape.
        """
        kept = dtypes or {}
        self.affine = {
            name: _affine(name, statistics, mode, min_std, np.dtype(kept.get(name, "float32")))
            for name, mode in modes.items()
        }
        for name, feature in (features or {}).items():
            if name in self.affine and self.affine[name].shift.shape != feature.shape:
                raise OptionError(
                    f"normalize[{name!r}]: statistics of shape {self.affine[name].shift.shape}, wanted "
                    f"{feature.shape}. Use the statistics of this dataset."
                )
        self._on_device: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}

    def normalize(self, name: str, values: Tensor) -> Tensor:
        """`values` (..., *shape of a step) of a feature, normalised; in place where they have its dtype."""
        shift, scale = self._tensors(name, values.device)
        return values.to(shift.dtype).sub_(shift).div_(scale)

    def unnormalize(self, name: str, values: Tensor) -> Tensor:
        """The inverse, as a new tensor on the device of `values`: what a policy returned, in the units of the data."""
        shift, scale = self._tensors(name, values.device)
        return values * scale + shift

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Normalise the features of a batch in place."""
        for name in self.affine:
            if name in batch:
                batch[name] = self.normalize(name, batch[name])
        return batch

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: what belongs into a checkpoint, so that inference undoes what training did."""
        return {
            name: {"mode": one.mode, "shift": one.shift.tolist(), "scale": one.scale.tolist()}
            | ({"dtype": "float64"} if one.shift.dtype == np.float64 else {})
            for name, one in self.affine.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> "Normalizer":
        """The inverse of `to_dict`."""
        self = cls({}, {})
        for name, one in values.items():
            dtype = np.float64 if one.get("dtype") == "float64" else np.float32
            shift, scale = np.asarray(one["shift"], dtype), np.asarray(one["scale"], dtype)
            if shift.shape != scale.shape or not np.all(scale > 0):
                raise OptionError(
                    f"normalizer of {name}: shift {shift.shape}, scale {scale.shape}, wanted equal shapes."
                )
            self.affine[name] = Affine(one["mode"], shift, scale)
        return self

    def _tensors(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        key = (name, device)
        if key not in self._on_device:
            if name not in self.affine:
                raise OptionError(f"normalizer: no feature {name!r}, it has {sorted(self.affine)}.")
            one = self.affine[name]
            self._on_device[key] = (torch.tensor(one.shift, device=device), torch.tensor(one.scale, device=device))
        return self._on_device[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"affine": self.affine, "_on_device": {}}


def normalizer_for(
    wanted: Mode | Mapping[str, Mode] | Normalizer,
    features: Mapping[str, Feature],
    statistics: Statistics,
    dtypes: Mapping[str, str] | None = None,
) -> Normalizer:
    """What the argument `normalize` of a stream means.

    Args:
        wanted: a mode for all state and actions (float features called ``observation.*`` or ``action*``), modes by
            feature, or a normalizer.
        features: that are streamed.
        statistics: of the dataset.
        dtypes: of features that are streamed in another than float32.

    Raises:
        OptionError: unknown modes or features, cameras, or missing statistics.
    """
    if isinstance(wanted, Normalizer):
        return wanted
    if "quantiles" not in ([wanted] if isinstance(wanted, str) else [*wanted.values()]):
        statistics = moments_of(statistics)
    if isinstance(wanted, str):
        _check_mode("normalize", wanted)
        modes = {name: wanted for name, feature in features.items() if _is_motion(name, feature)}
        # Only a mode for all may leave something out: a feature that was named must be normalised.
        unknown = [name for name in modes if name not in statistics]
        if len(unknown) == len(modes):
            raise OptionError(
                f"normalize={wanted!r}: the dataset has no statistics of {unknown or 'any state or action'}. Pack it "
                "with 'epistream pack', or give a Normalizer with your own."
            )
        if unknown:
            _log.warning("normalize=%r: no statistics of %s, left as they are.", wanted, ", ".join(unknown))
        modes = {name: mode for name, mode in modes.items() if name in statistics}
    else:
        modes = dict(wanted)
        wrong = [name for name in modes if name not in features or features[name].kind != "array"]
        if wrong:
            arrays = sorted(name for name, feature in features.items() if feature.kind == "array")
            raise OptionError(
                f"normalize: {wrong} not among the low-dimensional features {arrays}. Name some of these."
            )
    return Normalizer(statistics, modes, features=features, dtypes=dtypes)


def _is_motion(name: str, feature: Feature) -> bool:
    is_float = np.dtype(feature.dtype).kind == "f"
    return feature.kind == "array" and is_float and name.startswith(("observation.", "action"))


def _check_mode(where: str, mode: object) -> None:
    if mode not in get_args(Mode):
        raise OptionError(f"{where}: {mode!r}, wanted one of {', '.join(get_args(Mode))}.")


def _affine(name: str, statistics: Statistics, mode: str, min_std: float, dtype: np.dtype[Any]) -> Affine:
    _check_mode(f"normalize[{name!r}]", mode)
    known = statistics.get(name, {})
    missing = [key for key in _NEEDED[mode] if key not in known]
    if missing:
        raise OptionError(
            f"normalize[{name!r}]: the statistics have no {' and no '.join(missing)} of it, they have "
            f"{sorted(known) or 'nothing'}. Pack again with this release, or give your own statistics."
        )
    first, second = (np.asarray(known[key], np.float64) for key in _NEEDED[mode])
    if mode == "mean_std":
        shift, scale = first, np.maximum(second, min_std) if min_std > MIN_SCALE else second
    else:
        shift, scale = (second + first) / 2, (second - first) / 2
    # JSON has null for what is not known, which numpy reads as NaN; the comparison is false for it too.
    shift = np.nan_to_num(shift, nan=0.0)
    scale = np.where(scale >= MIN_SCALE, scale, 1.0)
    return Affine(cast(Mode, mode), shift.astype(dtype), scale.astype(dtype))
