"""What becomes of a batch in the training process: deltas, normalisation, and the format that was asked for."""

import fnmatch
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from epistream.errors import OptionError
from epistream.hints import did_you_mean
from epistream.loader.frames.frames import FrameOptions, ImageSize
from epistream.loader.order.window import Window
from epistream.loader.reading.instructions import Instruction, all_tasks
from epistream.loader.samples.action_delta import ActionDelta, DeltaKind
from epistream.loader.samples.delta_timestamps import TOLERANCE_S, window_in_seconds
from epistream.loader.samples.formats.base import FormatContext, SampleFormat
from epistream.loader.samples.formats.names import WantedFormat, format_for
from epistream.loader.samples.normalize import Mode, Normalizer, normalizer_for
from epistream.options import Range, check
from epistream.sharding.format.feature_sets import choose_features
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.opened_dataset import Dataset

Batch = dict[str, Any]
KeptDtype = Literal["float32", "float64"]


@dataclass(frozen=True)
class SampleOptions:
    """What a stream's user wants of a sample; the arguments of `EpisodeStream` of the same names."""

    features: Collection[str] | None = None
    # Which dtypes there are, and of which features, is looked at below and with the features.
    dtypes: Mapping[str, Any] | None = None
    window: Window | None = None
    delta_timestamps: Mapping[str, Collection[float]] | None = None
    tolerance_s: Annotated[float, Range(ge=0)] = TOLERANCE_S
    squeeze: bool = False
    action_delta: DeltaKind | ActionDelta | None = None
    # Modes by feature are looked at with the features.
    normalize: Mode | Mapping[str, Any] | Normalizer | None = None
    instruction: Instruction = "first"
    sample_format: WantedFormat | None = None
    image_size: ImageSize | None = None

    def __post_init__(self) -> None:
        check(self)
        for name, dtype in (self.dtypes or {}).items():
            if dtype not in get_args(KeptDtype):
                raise OptionError(
                    f"dtypes[{name!r:.80}]: {dtype!r:.80}, wanted 'float32' or 'float64'. Leave {name!r:.80} out."
                )


class Collator:
    """Makes of a batch's arrays what a training loop gets. Picklable.

    Attributes:
        features: to read.
        dtypes: of those that were asked for in one.
        window: to read them in.
        normalizer: what is applied; None if nothing is.
    """

    def __init__(self, dataset: Dataset, options: SampleOptions) -> None:
        """Check the options against a dataset, and decide what is read.

        Raises:
            OptionError: options that cannot work, alone, together or with this dataset.
        """
        sample_format = format_for(options.sample_format)
        preset = sample_format if isinstance(sample_format, SampleFormat) else None
        if preset is not None and options.squeeze:
            raise OptionError(f"squeeze: {type(preset).__name__} decides the shapes itself. Leave squeeze out.")
        names = options.features
        if names is None and preset is not None:
            names = preset.select(dataset.features)
        self.features = choose_features(dataset.features, names)
        self.dtypes = choose_dtypes(self.features, options.dtypes)
        window = options.window or Window()
        if preset is not None:
            window = preset.window(options.window, dataset)
        if options.delta_timestamps is not None:
            window = window_in_seconds(
                options.delta_timestamps, self.features, base=window, tolerance_s=options.tolerance_s
            )
        shown = FrameOptions(options.image_size).all_shown(self.features)
        self._context = FormatContext(dataset, shown, window)
        if preset is not None:  # first: overrides may be the format's own
            preset.check(self._context)
        unknown = sorted(set(window.overrides) - set(self.features))
        if unknown:
            raise OptionError(f"Window.overrides: {unknown} not among the streamed features {sorted(self.features)}.")
        self._format = sample_format
        delta = options.action_delta
        self._delta = ActionDelta(delta) if isinstance(delta, str) else delta
        if self._delta is not None:
            self._delta.check(self.features)
        self.window = window if self._delta is None else self._delta.read(window)
        self.normalizer = _normalizer(dataset, self.features, options, self._delta, self.dtypes)
        self._every_task = options.instruction == "all"
        self._squeezed = [name for name in self.features if options.squeeze and len(window.offsets(name)) == 1]

    @property
    def marks_repeats(self) -> bool:
        """Whether batches have a place for the mask of repeated windows; a function of the user's sees to it itself."""
        return not isinstance(self._format, SampleFormat) or self._format.marks_repeats

    @property
    def changes_nothing(self) -> bool:
        """Whether it only gives the arrays their names: then batches of several datasets can be made as one."""
        return self._delta is None and self.normalizer is None and self._format is None and not self._squeezed

    def __call__(self, views: Mapping[str, NDArray[Any]], with_repeats: bool, tasks: list[Any] | None = None) -> Any:
        """Make of a batch what a training loop gets.

        Args:
            views: the arrays of `BatchLayout`, B rows each; changed in place, and shared by what is returned.
            with_repeats: whether the mask of repeated windows is part of the batch.
            tasks: the instructions, where they are not all of this dataset.
        """
        batch: Batch = {}
        for name in self.features:
            for key in (name, f"{name}_is_pad"):
                batch[key] = torch.from_numpy(views[key])
        for key in ("episode_index", "step_index"):
            batch[key] = torch.from_numpy(views[key])
        batch["task"] = self.tasks(views) if tasks is None else tasks
        if with_repeats:
            batch["is_repeat"] = torch.from_numpy(views["is_repeat"])
        if self._delta is not None:
            self._delta.apply(batch, self._context.window)
        if self.normalizer is not None:
            self.normalizer(batch)
        if isinstance(self._format, SampleFormat):
            batch["task_index"] = torch.from_numpy(views["task_index"])
            return self._format(batch, self._context)
        for name in self._squeezed:
            for key in (name, f"{name}_is_pad"):
                batch[key] = batch[key].squeeze(1)
        return batch if self._format is None else self._format(batch)

    def tasks(self, views: Mapping[str, NDArray[Any]]) -> list[Any]:
        """The instruction of each row, or all of them."""
        if self._every_task:
            return all_tasks(self._context.dataset, views["episode_index"])
        tasks = self._context.dataset.tasks
        return [tasks[task] if task >= 0 else "" for task in views["task_index"].tolist()]


def _normalizer(
    dataset: Dataset,
    features: Mapping[str, Feature],
    options: SampleOptions,
    delta: ActionDelta | None,
    dtypes: Mapping[str, str],
) -> Normalizer | None:
    if options.normalize is None:
        return None
    normalizer = normalizer_for(options.normalize, features, dataset.statistics, dtypes)
    for name, affine in normalizer.affine.items():
        if dtypes.get(name) == "float64" and affine.shift.dtype != np.float64:
            raise OptionError(
                f"normalize and dtypes: a Normalizer with float32 numbers of {name}, wanted float64, as dtypes says. "
                f'Make it with Normalizer(statistics, modes, dtypes={{"{name}": "float64"}}), or leave {name} out of '
                "dtypes."
            )
    if delta is not None and delta.action in normalizer.affine and not isinstance(options.normalize, Normalizer):
        raise OptionError(
            f"normalize and action_delta: the dataset's statistics are of {delta.action} as recorded, not of the "
            "differences. Give a Normalizer with those that epistream.delta_statistics computes."
        )
    return normalizer


def choose_dtypes(features: Mapping[str, Feature], wanted: Mapping[str, str] | None) -> dict[str, str]:
    """The dtype of each feature that was asked for in one.

    Args:
        features: that are streamed.
        wanted: dtypes by name or pattern (``observation.*``); a name wins over a pattern, a later one over an earlier.

    Raises:
        OptionError: a name that is not streamed, a camera, or a pattern that no array matches.
    """
    arrays = [name for name, feature in features.items() if feature.kind == "array"]
    chosen: dict[str, str] = {}
    for pattern, dtype in sorted((wanted or {}).items(), key=lambda item: item[0] in features):
        matching = [pattern] if pattern in arrays else fnmatch.filter(arrays, pattern)
        if not matching:
            what = "a camera" if pattern in features else "not among the streamed features"
            otherwise = "Name one of these, or a pattern such as 'observation.*'."
            raise OptionError(
                f"dtypes: {pattern!r} is {what}, wanted some of {sorted(arrays)}. "
                f"{did_you_mean(pattern, arrays, otherwise)}"
            )
        chosen |= dict.fromkeys(matching, dtype)
    return chosen
