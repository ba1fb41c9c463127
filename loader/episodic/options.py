"""The arguments of OptimizedEpisodicDataset: its two forms, and which features they mean."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from epistream.errors import OptionError
from epistream.loader.samples.action_delta import DeltaKind
from epistream.sharding.format.features import Feature

CTRL_TYPES: dict[str, DeltaKind | None] = {
    "abs": None,
    "absolute": None,
    "delta": "delta_step",
    "delta_step": "delta_step",
    "delta_first": "delta_first",
}


def short_form(
    positional: tuple[Any, Any, Any, Any, Any], ctrl_type: str, image_size: Any, preload_data: bool
) -> tuple[int, str, str, Any, bool]:
    """The short form ``(paths, cameras, chunk_size, ctrl_space, ctrl_type, image_size, preload_data)``.

    Args:
        positional: what stands in places 3 to 7, which the long form calls action_normalizers, state_normalizers,
            data_args, chunk_size and ctrl_space; those that were not given have the long form's defaults.
        ctrl_type: given by name.
        image_size: given by name.
        preload_data: given by name.

    Returns:
        chunk_size, ctrl_space, ctrl_type, image_size, preload_data.
    """
    chunk_size, space, kind, size, last = positional
    by_name = last if isinstance(last, str) else "ee"
    return (
        chunk_size,
        by_name if space is None else space,
        ctrl_type if kind is None else kind,
        size if isinstance(size, tuple | list) else image_size,
        last if isinstance(last, bool) else preload_data,
    )


def check_choices(chunk_size: object, ctrl_type: object) -> None:
    """Raise OptionError for a chunk size or a control type that cannot be."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise OptionError(f"chunk_size: {chunk_size!r}, wanted an integer of at least 1.")
    if ctrl_type not in CTRL_TYPES:
        raise OptionError(f"ctrl_type: {ctrl_type!r}, wanted one of {', '.join(CTRL_TYPES)}.")


def camera_features(features: Mapping[str, Feature], camera_names: Sequence[str]) -> list[str]:
    """The features of cameras, called as in their source file, by their short name or as features.

    Raises:
        OptionError: a camera that is not there, or none at all.
    """
    cameras = {name: feature for name, feature in features.items() if feature.kind == "frames"}
    found = []
    for wanted in camera_names:
        name = next((name for name, feature in cameras.items() if _is_called(name, feature, wanted)), None)
        if name is None:
            known = sorted(name.removeprefix("observation.images.") for name in cameras)
            raise OptionError(f"camera_names: no camera {wanted!r}, the files have {known}. Name some of these.")
        found.append(name)
    if len(set(found)) != len(found) or not found:
        raise OptionError(f"camera_names: {list(camera_names)}, wanted at least one, each once.")
    return found


def _is_called(name: str, feature: Feature, wanted: str) -> bool:
    return wanted in (name, feature.source_path.rsplit("/", 1)[-1]) or name == f"observation.images.{wanted.lower()}"


def motion_features(
    features: Mapping[str, Feature], usual: str, ctrl_space: str, chosen: Sequence[str] | None, attribute: str
) -> tuple[str, ...]:
    """The features that are the state, or the action.

    Args:
        features: of the dataset.
        usual: their usual name; with ``_ee`` or ``_joint`` behind it where a file has one for each control space.
        ctrl_space: which of these.
        chosen: what a subclass says; it wins.
        attribute: the class attribute that says so.

    Raises:
        OptionError: they are not there; the message names the attribute that cures it.
    """
    arrays = {name for name, feature in features.items() if feature.kind == "array" and len(feature.shape) == 1}
    for names in (chosen,) if chosen else ((f"{usual}_{ctrl_space}",), (usual,)):
        if set(names) <= arrays:
            return tuple(names)
    raise OptionError(
        f"{attribute}: {list(chosen or (usual,))} not among the features with one axis {sorted(arrays)}. Set "
        f"{attribute} = [...] in a subclass to those that are meant; several are joined."
    )


def takes_argument(method: Callable[..., Any]) -> bool:
    """Whether a bound method can be called with one argument by position."""
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    return any(parameter.kind in kinds for parameter in inspect.signature(method).parameters.values())
