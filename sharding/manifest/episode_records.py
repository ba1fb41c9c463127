"""What is known of each episode by itself: its scalar attributes, and statistics of its arrays that can be added up.

The file is one table of columns, ``episodes-<8 hex>.tables``, named after its checksum and never changed: a dataset to
which episodes are added has one more of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.lazy import lazy
from epistream.sharding.format.episode_meta import parse_json
from epistream.sharding.format.ragged import Int64, offsets_of, row_numbers
from epistream.sharding.format.tables import parse_tables, write_tables
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.record_columns import FeatureRecords

KIND = "epistream.dataset-episodes"
REMEDY = "Nothing that is streamed needs it. Copy it again, or make it anew with 'epistream index URL --overwrite'."
# The header of the file names seven tables of each, and holds 4,096 names.
MAX_FEATURES = 500
_MAX_STEPS = 1 << 34  # of an episode, as in the manifest
_OF_FEATURE = ("mean", "squares", "minimum", "maximum", "count", "not_finite", "points")
_OPTIONAL = frozenset({"count", "not_finite", "points"})


@dataclass(frozen=True, eq=False)
class EpisodeRecords:
    """R episodes, in the order of the dataset that they were packed for.

    Args:
        num_steps: (R,) int64 steps that the statistics are of: those within the valid ranges.
        num_points: (R,) int64 points for quantiles of each, the same for all its features; as many as steps where all
            values are kept. A point stands for steps / points steps.
        features: What is known of each array feature; wide ones may be missing.
        described: (R,) scalar attributes of each, as a JSON map; an empty text for none.

    Pickles.
    """

    num_steps: Int64
    num_points: Int64
    features: Mapping[str, FeatureRecords]
    described: Texts

    @property
    def num_records(self) -> int:
        """Episodes, R."""
        return len(self.num_steps)

    @lazy
    def point_offsets(self) -> Int64:
        """(R + 1,) where the points of each episode begin and end."""
        return offsets_of(self.num_points)

    def attributes(self, row: int) -> dict[str, Any]:
        """The scalar attributes of one episode; nested maps have names with dots, ``env.seed``.

        Raises:
            FormatError: If they cannot be read.
        """
        text = self.described[row]
        return _attributes_of(text) if text else {}

    def attribute_columns(self, names: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """Attributes by name, of each episode in order; None where it has no such attribute.

        Args:
            names: Of the attributes; None for all that any episode has, in the order of first use.

        Raises:
            FormatError: If they cannot be read.
        """
        known: dict[str, dict[str, Any]] = {"": {}}
        rows = [
            known[text] if text in known else known.setdefault(text, _attributes_of(text)) for text in self.described
        ]
        if names is None:
            names = tuple(dict.fromkeys(name for row in rows for name in row))
        return {name: [row.get(name) for row in rows] for name in names}

    def select(self, rows: NDArray[Any] | Sequence[int]) -> "EpisodeRecords":
        """Those of some episodes, in the order given.

        Args:
            rows: Their numbers, or a mask (R,).

        Raises:
            IndexError: If there is no such row.
        """
        chosen = row_numbers(np.asarray(rows) if len(rows) else np.empty(0, np.int64), self.num_records)
        texts, offsets = self.described.select(chosen), self.point_offsets
        features = {name: one.select(chosen, offsets) for name, one in self.features.items()}
        return EpisodeRecords(self.num_steps[chosen], self.num_points[chosen], features, texts)

    def renamed(self, old_names: Mapping[str, str]) -> "EpisodeRecords":
        """The same with other names of features; those that are not mentioned keep theirs.

        Args:
            old_names: New name -> old name. Of features that are not here nothing comes; one whose name another takes
                goes.
        """
        new_names = {old: new for new, old in old_names.items() if old in self.features}
        taken = set(new_names.values()) - new_names.keys()
        features = {new_names.get(name, name): one for name, one in self.features.items() if name not in taken}
        return replace(self, features=features)

    def only(self, names: Sequence[str]) -> "EpisodeRecords":
        """The same without all features but these, of those that there are."""
        kept = frozenset(names)
        return replace(self, features={name: one for name, one in self.features.items() if name in kept})

    @staticmethod
    def join(parts: Sequence["EpisodeRecords"]) -> "EpisodeRecords":
        """One after the other, with the features that all have in one shape; parts without episodes do not count."""
        parts = [part for part in parts if part.num_records] or list(parts[:1])
        if not parts:
            return NO_EPISODES
        if len(parts) == 1:
            return parts[0]
        steps = [part.num_steps for part in parts]
        shapes = [{name: one.shape for name, one in part.features.items()} for part in parts]
        alike = [name for name, shape in shapes[0].items() if all(other.get(name) == shape for other in shapes)]
        return EpisodeRecords(
            np.concatenate(steps),
            np.concatenate([part.num_points for part in parts]),
            {name: FeatureRecords.join([part.features[name] for part in parts], steps) for name in alike},
            Texts.join([part.described for part in parts]),
        )

    def to_bytes(self) -> bytes:
        """The file; the same records give the same bytes."""
        data, offsets = self.described.arrays
        arrays: dict[str, NDArray[Any]] = {
            "num_steps": self.num_steps,
            "num_points": self.num_points,
            "attributes": data,
            "attribute_offsets": offsets,
        }
        for name, one in self.features.items():
            arrays |= {f"{key}:{name}": array for key, array in one.arrays(self.num_steps).items()}
        shapes = {name: list(one.shape) for name, one in self.features.items()}
        return write_tables(KIND, {"num_records": self.num_records, "features": shapes}, arrays)

    @staticmethod
    def parse(data: bytes, where: str) -> "EpisodeRecords":
        """The inverse of `to_bytes`; its arrays are read-only views of `data`.

        Args:
            data: The file, whose checksum was compared.
            where: Its name, for messages.

        Raises:
            VersionError: If the container is of a later version.
            FormatError: If it says anything that cannot be.
        """
        tables = parse_tables(data, KIND, where, REMEDY, verify_body=False)
        shapes, arrays = tables.meta.get("features"), tables.arrays
        if not isinstance(shapes, dict) or len(shapes) > MAX_FEATURES or not all(map(_is_feature, shapes.items())):
            raise FormatError(f"{where}: features {shapes!r:.200}, wanted the shape of each. {REMEDY}")
        texts = Texts(
            _array(arrays, "attributes", np.uint8, where), _array(arrays, "attribute_offsets", np.int64, where),
            where, REMEDY,
        )  # fmt: skip
        features = {name: _feature(name, shape, arrays, where) for name, shape in shapes.items()}
        steps, points = (_array(arrays, name, np.int64, where) for name in ("num_steps", "num_points"))
        records = EpisodeRecords(steps, points, features, texts)
        problem = next(records._problems(tables.meta.get("num_records")), None)
        if problem:
            raise FormatError(f"{where}: {problem}. {REMEDY}")
        return records

    def _problems(self, num_records: object) -> Iterator[str]:
        """What cannot be; later checks rely on the earlier ones."""
        for found in (self.num_steps, self.num_points, self.described):
            if len(found) != num_records:
                yield f"{len(found)} episodes, wanted {num_records!r:.40} of everything"
        steps, points = self.num_steps, self.num_points
        if ((steps < 0) | (steps > _MAX_STEPS)).any():
            yield f"an episode of fewer than 0 or more than {_MAX_STEPS:,} steps"
        if ((points > steps) | ((points < 1) & (steps > 0)) | (points < 0)).any():
            yield "an episode with no points of its values, or more than it has steps"
        total = int(points.sum())
        for name, one in self.features.items():
            for problem in one.problems(steps, total):
                yield f"{name}: {problem}"


NO_EPISODES = EpisodeRecords(np.empty(0, np.int64), np.empty(0, np.int64), {}, Texts.of((), "episodes"))


def _attributes_of(text: str) -> dict[str, Any]:
    value = parse_json(text.encode(), "attributes of an episode")
    if not isinstance(value, dict):
        raise FormatError(f"attributes of an episode: {value!r:.80}, wanted a map. {REMEDY}")
    return value


def _is_feature(item: tuple[object, object]) -> bool:
    name, shape = item
    is_shape = isinstance(shape, list) and all(type(size) is int and 0 < size < 1 << 32 for size in shape)
    return isinstance(name, str) and is_shape


def _array(arrays: Mapping[str, NDArray[Any]], name: str, dtype: type[np.generic], where: str) -> NDArray[Any]:
    array = arrays.get(name)
    if array is None or array.dtype != dtype or array.ndim != 1:
        found = "missing" if array is None else f"{array.dtype} {array.shape}"
        raise FormatError(f"{where}: table {name!r} is {found}, wanted {np.dtype(dtype)}. {REMEDY}")
    return array


def _feature(name: str, shape: list[int], arrays: Mapping[str, NDArray[Any]], where: str) -> FeatureRecords:
    found = {key: arrays[f"{key}:{name}"] for key in _OF_FEATURE if f"{key}:{name}" in arrays}
    missing = [key for key in _OF_FEATURE if key not in found and key not in _OPTIONAL]
    if missing:
        raise FormatError(f"{where}: {name!r:.80} without {missing[0]}, wanted it. {REMEDY}")
    return FeatureRecords(tuple(shape), **found)
