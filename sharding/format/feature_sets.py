"""Sets of features: what of one is wanted, by name or pattern, how two of them differ, and what several share."""

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from epistream.errors import FormatError, OptionError
from epistream.hints import did_you_mean, in_short
from epistream.sharding.format.features import Feature

Wanted = Collection[str]
T = TypeVar("T")

# A reader would notice each of these; `source_path` he would not.
_NOTICED = ("kind", "dtype", "shape", "codec", "jpeg_channels", "rotate", "fps", "units")
# Of each kind of difference a message names as many and counts the others.
_MOST_NAMED = 4


def matching(available: Iterable[str], wanted: Wanted) -> list[str]:
    """The names that are wanted, each once: in the order wanted, those of one pattern in the order of `available`.

    Args:
        available: Names.
        wanted: Names and patterns such as ``observation.images.*``.

    Raises:
        OptionError: If there is anything else among them.
    """
    available = list(available)
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(wanted, Collection) or not all(isinstance(one, str) for one in wanted):
        raise OptionError(
            f"features: {in_short(wanted)}, wanted a list of names and patterns such as 'observation.images.*'. "
            "Leave it out for all."
        )
    return list(dict.fromkeys(name for one in wanted for name in available if fnmatch.fnmatchcase(name, one)))


def longest_group(features: Iterable[Feature]) -> int | None:
    """Steps of the longest group of the cameras that are video; None without one."""
    return max((feature.group_steps for feature in features if feature.group_steps is not None), default=None)


def with_longest_groups(mine: dict[str, Feature], other: Mapping[str, Feature]) -> dict[str, Feature]:
    """Features with the longest groups of pictures that they have in either set, if they are videos of one codec."""
    found = {}
    for name, feature in mine.items():
        its = other.get(name, feature)
        steps = longest_group((feature, its)) if its.codec == feature.codec else None
        found[name] = feature if steps is None else replace(feature, group_steps=steps)
    return mine if found == mine else found


def choose_features(available: Mapping[str, T], wanted: Wanted | None) -> dict[str, T]:
    """The features to stream: all, or those named or matched by a pattern, as `matching` orders them.

    Raises:
        OptionError: A name or pattern that fits nothing in the dataset, or a list without names.
    """
    if wanted is None:
        return dict(available)
    chosen = matching(available, wanted)
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    missing = [one for one in wanted if not matching(available, [one])]
    if not available:
        raise OptionError(f"features: {wanted}, but the parts of this dataset share none. Stream them one by one.")
    if missing or not wanted:
        otherwise = "Name some of these, or leave 'features' out for all."
        name = next((one for one in missing if not _is_pattern(one)), None)
        hint = otherwise if name is None else did_you_mean(name, available, otherwise)
        raise OptionError(
            f"features: {missing or 'an empty list'} not in this dataset, which has {sorted(available)}. {hint}"
        )
    return {name: available[name] for name in chosen}


def describe_difference(mine: Mapping[str, Feature], wanted: Mapping[str, Feature]) -> str | None:
    """How a set of features differs from the wanted one where a reader would notice, or None."""
    if mine.keys() == wanted.keys() and all(_noticed(mine[name]) == _noticed(wanted[name]) for name in mine):
        return None
    left = {name: _described(feature) for name, feature in mine.items()}
    right = {name: _described(feature) for name, feature in wanted.items()}
    for name in left.keys() & right.keys():
        if left[name]["codec"] != right[name]["codec"]:  # which brings its own order of channels
            left[name].pop("jpeg_channels"), right[name].pop("jpeg_channels")
    return difference_text(left, right)


def difference_text(mine: Mapping[str, Mapping[str, str]], wanted: Mapping[str, Mapping[str, str]]) -> str | None:
    """How named things differ from the wanted ones, in a phrase that follows the name of what has `mine`; or None.

    Args:
        mine: What is said of each, by its name.
        wanted: The same, of those that are wanted.
    """
    common = [name for name in mine if name in wanted]
    other = [f"{name}: {text}" for name in common if (text := _changes(mine[name], wanted[name]))]
    lacking = [name for name in wanted if name not in mine]
    added = [name for name in mine if name not in wanted]
    parts = [f"lacks {_some(lacking)}"] * bool(lacking) + [f"also has {_some(added)}"] * bool(added)
    return "; ".join([" and ".join(parts)] * bool(parts) + [_some(other, "; ")] * bool(other)) or None


def agreed(
    so_far: dict[str, Feature], first: str, mine: Mapping[str, Feature], where: str, wanted: Wanted | None
) -> dict[str, Feature]:
    """The features that one more part of a dataset has in common with those before it.

    Args:
        so_far: What those before it have in common.
        first: The first of them, for messages.
        mine: Those of the part.
        where: The part, for messages.
        wanted: Names and patterns in which all parts must agree; in everything if None.

    Raises:
        FormatError: If they do not agree.
    """
    so_far = with_longest_groups(so_far, mine)
    if describe_difference(mine, so_far) is None:
        return so_far
    common = {name: one for name, one in so_far.items() if name in mine and _noticed(one) == _noticed(mine[name])}
    named = None if wanted is None else matching({**so_far, **mine}, wanted)
    difference = describe_difference(*(_only(each, named) for each in (mine, so_far)))
    if difference is None:
        return common
    shared = [name for name in common if named is None or name in named] or list(common)
    if shared:
        remedy = f"Name only what all of them share, features={shared} (--feature of commands), or pack them alike."
    else:
        remedy = "They share no feature: stream them one by one, or as a Mixture."
    what = "the same features" if wanted is None else "the features that were named"
    raise FormatError(f"{where}: {difference}, wanted {what} as in {first}. {remedy}")


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _only(features: Mapping[str, Feature], names: Collection[str] | None) -> Mapping[str, Feature]:
    return features if names is None else {name: one for name, one in features.items() if name in names}


def _noticed(feature: Feature) -> tuple[object, ...]:
    return tuple(getattr(feature, name) for name in _NOTICED)


def _described(feature: Feature) -> dict[str, str]:
    said = {name: str(getattr(feature, name)) for name in _NOTICED}
    if feature.kind == "frames" and len(feature.shape) == 3:
        height, width, channels = feature.shape
        said |= {"width x height": f"{width}x{height}", "channels": str(channels)}
        del said["shape"]
    return said


def _changes(mine: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """What is said of one thing that is not as wanted."""
    if mine.get("kind") != wanted.get("kind"):
        return f"{mine['kind']} instead of {wanted['kind']}"
    return ", ".join(f"{key} {mine[key]} instead of {wanted[key]}" for key in mine if mine[key] != wanted.get(key))


def _some(texts: list[str], comma: str = ", ") -> str:
    left = len(texts) - _MOST_NAMED
    return comma.join(texts[:_MOST_NAMED]) + (f" and {left:,} more" if left > 0 else "")
