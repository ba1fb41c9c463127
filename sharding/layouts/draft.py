"""An episode while a layout describes it: takes what is wanted, keeps what fits its length, tells of the rest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import h5py

from epistream.errors import FormatError, LayoutError
from epistream.sharding.format.features import IMAGES
from epistream.sharding.layouts.base import (
    Candidate,
    Choice,
    Field,
    NotPackableError,
    SourceEpisode,
    array_field,
    frames_field,
)
from epistream.sharding.layouts.names import usable_name
from epistream.sharding.layouts.values import whole_text
from epistream.sharding.opening.walking import go_on

STATE, ACTION = "observation.state", "action"
# More than any recorder writes, and as many as readers of an index still open in no time.
_MAX_FEATURES = 4096
_STREAMS = "a stream of the file as it is takes what a layout file names (layout='FILE.yaml')"


class _Everything:
    """The choice of who streams a file as it is."""

    def takes(self, candidate: Candidate) -> bool:
        return True

    def names(self, candidates: Sequence[Candidate]) -> list[str]:
        return [candidate.name for candidate in candidates]


class Draft:
    """Collects the features of one episode.

    Datasets that a layout takes for features come in three kinds: those that can be one; those that cannot, such as
    texts or constants of another length, which are left out with the reason; and those that must be one and are not: an
    action, a state or a camera whose length is not the episode's, an action without numbers, anything that is damaged.
    The last are errors.

    Args:
        file: The source.
        group: Of the episode.
        choice: What of it is wanted.

    Raises:
        LayoutError: If the name of the group is no text.
    """

    def __init__(self, file: h5py.File, group: str, choice: Choice | None) -> None:
        if whole_text(group) != group:
            raise LayoutError(
                f"{whole_text(group)!r}: a name in bytes that are no UTF-8, wanted text. Rename the group"
            )
        self._file, self._group = file, group
        self._choice: Choice = choice or _Everything()
        self._fields: list[Field] = []
        self._refused: list[tuple[Candidate, str]] = []  # with the path from the root
        self._faults: list[tuple[str, LayoutError]] = []  # by the name of the feature
        self._dropped: list[Candidate] = []
        self.left_out: list[str] = []

    def array(self, path: str, name: str, *, fps: float | None = None, **changes: Any) -> str:
        """Take the numbers at `path`; `changes` are those of the field. Gives the reason if it holds none."""
        name = usable_name(name)
        return self._take(path, name, False, lambda: replace(array_field(self._file, path, name, fps=fps), **changes))

    def frames(
        self,
        path: str,
        name: str,
        *,
        change: Callable[[Field], Field] = lambda field: field,
        make: Callable[..., Field] = frames_field,
        **how: Any,
    ) -> str:
        """Take the camera at `path`, as `make` does with `how`. Gives the reason if it is none."""
        name = usable_name(name, is_camera=True)
        return self._take(path, name, True, lambda: change(make(self._file, path, name, **how)))

    def wants(self, name: str, path: str, is_camera: bool) -> bool:
        """Whether a feature is wanted that would be called so; `path` is that from the episode's group."""
        return self._choice.takes(Candidate(usable_name(name, is_camera=is_camera), path.strip("/"), is_camera))

    def need_action(self, path: str) -> None:
        """See that some action was found, which should be at `path`, or is not wanted."""
        taken = [field.feature.name for field in self._fields] + [name for name, _ in self._faults]
        others = [candidate.name for candidate, _ in self._refused] + [candidate.name for candidate in self._dropped]
        if not any(_is_action(name) for name in (*taken, *others)):
            self._take(path, ACTION, False, lambda: _missing(self._file, path))

    def episode(
        self,
        *,
        shift: int = 0,
        split: str | None = None,
        tasks: tuple[str, ...] = (),
        attributes: Mapping[str, Any] | None = None,
        more_left_out: Sequence[str] = (),
    ) -> SourceEpisode:
        """What was collected, once all of it has one length.

        Args:
            shift: Rows of every dataset that no step has, because some are shifted by as many.
            split: As of `SourceEpisode`; `tasks` and `attributes` too.
            tasks: Its instructions.
            attributes: Whatever else the source says.
            more_left_out: To be named last.

        Raises:
            LayoutError: If anything that must be a feature is none, nothing is left, or two have one name.
        """
        if self._faults:
            raise self._faults[0][1]
        if not self._fields and not self._refused and not self._dropped:
            raise LayoutError(f"{self._group}: no features, wanted at least one")
        length = self._judge_lengths(shift) if self._fields else 0
        self._check_rest()
        self._check_names()
        reasons = [f"{path} ({candidate.reason})" for candidate, path in self._refused]
        return SourceEpisode(
            self._group,
            length,
            tuple(self._fields),
            tasks,
            split=split,
            attributes=attributes or {},
            left_out=tuple(map(whole_text, (*self.left_out, *reasons, *more_left_out))),
            refused=tuple(candidate for candidate, _ in self._refused),
            dropped=tuple(self._dropped),
        )

    def _take(self, path: str, name: str, is_camera: bool, make: Callable[[], Field]) -> str:
        go_on(path)
        candidate = Candidate(name, whole_text(path.removeprefix(self._group).strip("/")), is_camera)
        if not self._choice.takes(candidate):
            self._dropped.append(candidate)
            return ""
        try:
            field = make()
        except NotPackableError as error:
            self._refuse(candidate, path, str(error), is_fault=_is_action(name))
            return str(error).removeprefix(f"{path}: ")
        except (LayoutError, FormatError) as error:
            self._refuse(candidate, path, str(error), is_fault=True)
        else:
            self._fields.append(replace(field, feature=replace(field.feature, source_path=candidate.path)))
            if len(self._fields) > _MAX_FEATURES:
                raise LayoutError(
                    f"{self._group}: more than {_MAX_FEATURES:,} datasets that could be features, wanted fewer. Name "
                    "those that you want in a layout file"
                )
        return ""

    def _refuse(self, candidate: Candidate, path: str, text: str, *, is_fault: bool) -> None:
        reason = text.removeprefix(f"{path}: ").rstrip(".")
        if is_fault:
            where = "" if path in text else f"{path}: "
            error = LayoutError(f"{where}{text.rstrip('.')}. {_advice(candidate.name)}")
            self._faults.append((candidate.name, error))
        else:
            self._refused.append((replace(candidate, reason=reason), path))

    def _judge_lengths(self, shift: int) -> int:
        """The length of the episode; fields of another one are refused."""
        rows = {id(field): field.num_rows - shift for field in self._fields}
        length = self._length(rows)
        reference = min(
            (field for field in self._fields if rows[id(field)] == length),
            key=lambda field: (not _is_action(field.feature.name), not _is_needed_field(field)),
        )
        where = reference.path
        if length < 1:
            raise LayoutError(f"{where}: no steps, wanted at least 1")
        kept = []
        for field in self._fields:
            spare = rows[id(field)] - length
            if 0 <= spare <= field.spare_rows:
                kept.append(field)
                continue
            candidate = Candidate(field.feature.name, field.feature.source_path, field.feature.kind == "frames")
            is_fault = _is_needed(candidate)
            wanted = f"{length + field.spare_rows}" + (": one more than" if field.spare_rows else " as in")
            other = where if is_fault else reference.feature.source_path
            text = f"{field.path}: {rows[id(field)]} steps, wanted {wanted} {other}"
            self._refuse(candidate, field.path, text, is_fault=is_fault)
        if self._faults:
            raise self._faults[0][1]
        self._fields = kept
        return length

    def _length(self, rows: Mapping[int, int]) -> int:
        """The length that most actions, states and cameras have; at a tie, most of all; at a tie still, the action."""

        def votes(fields: Sequence[Field], length: int) -> int:
            return sum(0 <= rows[id(field)] - length <= field.spare_rows for field in fields)

        needed = [field for field in self._fields if _is_needed_field(field)] or self._fields
        with_action = {rows[id(field)] for field in needed if _is_action(field.feature.name)}
        return max(
            dict.fromkeys(rows[id(field)] for field in self._fields),
            key=lambda length: (votes(needed, length), votes(self._fields, length), length in with_action),
        )

    def _check_rest(self) -> None:
        """Refuse an episode of which nothing is left that a policy could see."""
        names = [field.feature.name for field in self._fields]
        if not names and not self._refused:
            dropped = ", ".join(candidate.name for candidate in self._dropped[:20])
            raise LayoutError(f"{self._group}: no feature is left without {dropped}, wanted at least one")
        lost = [(candidate, path) for candidate, path in self._refused if candidate.name.startswith("observation")]
        if not names or (lost and not any(name.startswith("observation") for name in names)):
            candidate, path = (lost or self._refused)[0]
            raise LayoutError(
                f"{path}: {candidate.reason}, and no other observation is left. {_advice(candidate.name)}"
            )

    def _check_names(self) -> None:
        candidates = [
            Candidate(f.feature.name, f.feature.source_path, f.feature.kind == "frames") for f in self._fields
        ]
        seen: dict[str, Field] = {}
        names = self._choice.names(candidates)
        for field, candidate, name in zip(self._fields, candidates, names, strict=True):
            other = seen.setdefault(name, field)
            if other is not field:
                raise LayoutError(
                    f"{field.path}: would be named {name!r}, and so would {other.path}, wanted names that differ. "
                    f"Pack with \"--rename '{candidate.path}={IMAGES * candidate.is_camera}NAME'\"; {_STREAMS}"
                )


def _advice(name: str) -> str:
    return f"Record or copy it again, or pack with '--drop {name}'; {_STREAMS}"


def _missing(file: h5py.File, path: str) -> Field:
    raise NotPackableError(f"{path}: {'a group' if path in file else 'not there'}, wanted numbers")


def _is_action(name: str) -> bool:
    return name.split(".", 1)[0] == ACTION


def _is_needed_field(field: Field) -> bool:
    return field.feature.kind == "frames" or field.feature.name == STATE or _is_action(field.feature.name)


def _is_needed(candidate: Candidate) -> bool:
    return candidate.is_camera or candidate.name == STATE or _is_action(candidate.name)
