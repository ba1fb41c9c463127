"""What of an episode a packing job wants, and under which names: the options ``cameras``, ``drop``, ``rename``."""

import fnmatch
from collections.abc import Sequence

from epistream.sharding.format.features import IMAGES
from epistream.sharding.layouts.base import Candidate, Field
from epistream.sharding.layouts.names import feature_name
from epistream.sharding.pack.options import PackOptions


class PackChoice:
    """The `Choice` of a job. A layout asks it before it opens a dataset, so that nothing unwanted can be a fault."""

    def __init__(self, options: PackOptions) -> None:
        self._options = options

    def takes(self, candidate: Candidate) -> bool:
        """Whether no pattern of ``drop`` fits, and a camera is one of ``cameras``."""
        if any(self.is_dropped_by(pattern, candidate) for pattern in self._options.drop):
            return False
        if not candidate.is_camera or not self._options.cameras:
            return True
        return any(self.is_camera_called(name, candidate) for name in self._options.cameras)

    def is_camera_called(self, name: str, candidate: Candidate) -> bool:
        """Whether ``cameras`` means this one by `name`."""
        names = _names_of(candidate, self._exact_name(candidate))
        return candidate.is_camera and (name in names or _is_path(name, candidate))

    def is_dropped_by(self, pattern: str, candidate: Candidate) -> bool:
        """Whether a pattern of ``drop`` means it: by the name that it will have or would have had, or by its path."""
        names = {candidate.name, self._exact_name(candidate)}
        if candidate.is_camera:
            key = candidate.path.rsplit("/", 1)[-1]
            if pattern in (key, candidate.name.removeprefix(IMAGES)):
                return True
        if "/" in pattern:
            names = {candidate.path, f"/{candidate.path}"}
        return _is_path(pattern, candidate) or any(fnmatch.fnmatchcase(name, pattern) for name in names)

    def names(self, candidates: Sequence[Candidate]) -> list[str]:
        """What they are called: first whom ``rename`` means exactly, then, of the others, who has such a key."""
        names = []
        for candidate in candidates:
            name = self._exact_name(candidate)
            if name == candidate.name:
                name = self._name_by_key(candidate, candidates)
            names.append(name)
        return names

    def _exact_name(self, candidate: Candidate) -> str:
        for old, new in self._options.rename:
            if old == candidate.name or _is_path(old, candidate):
                return new
            if candidate.is_camera and old == candidate.name.removeprefix(IMAGES):
                return _as_camera(new)
        return candidate.name

    def _name_by_key(self, candidate: Candidate, others: Sequence[Candidate]) -> str:
        key = candidate.path.rsplit("/", 1)[-1]
        for old, new in self._options.rename:
            if old == key and not any(old in (other.name, other.name.removeprefix(IMAGES)) for other in others):
                return _as_camera(new) if candidate.is_camera else new
        return candidate.name


def candidate_of(field: Field) -> Candidate:
    """A field as a choice sees it."""
    return Candidate(field.feature.name, field.feature.source_path, field.feature.kind == "frames")


def _is_path(text: str, candidate: Candidate) -> bool:
    """Whether `text` is its path, from the episode's group or, as messages have it, from the root of the file."""
    return text in (candidate.path, f"/{candidate.path}") or (text[:1] == "/" and text.endswith(f"/{candidate.path}"))


def _as_camera(name: str) -> str:
    """A camera renamed to a bare word stays a camera."""
    return name if "." in name else IMAGES + feature_name(name)


def _names_of(candidate: Candidate, new: str) -> set[str]:
    """Everything by which a person may call it."""
    path = candidate.path
    names = {candidate.name, new, path, f"/{path}", path.rsplit("/", 1)[-1]}
    return names | {name.removeprefix(IMAGES) for name in (candidate.name, new)}
