"""Rows of LeRobot data sets as Parquet: columns of steps, of tasks and of episodes, and what the schemas say of them.

Readers take types from what the library ``datasets`` put into the schema, and the texts of tasks from what pandas put
there: both are written here as these libraries read them, in all their versions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError, PackError
from epistream.sharding.files.arrow import arrow_module as pyarrow
from epistream.sharding.lerobot_out.arrow_columns import nested, numbers_column, offsets_of, texts_column
from epistream.sharding.lerobot_out.model import DERIVED, OutFeature

# What the library ``datasets`` writes into schemas is called so.
_HUGGINGFACE = "huggingface"
# Of a group of rows. A reader of one episode reads its group: too small ones swell the footer, which everybody reads.
_GROUP_BYTES, _MOST_GATHERED = 1 << 20, 64
# Whether a page is full, of 1 MiB, is looked at after so many values, 1,024 by default: of PNG these are 60 to 300 MB,
# which are held three times over. An export of an episode of 400 steps took 262 MB, so it takes 122.
_PICTURES_AT_ONCE = 16
_ARRAYS = {2: "Array2D", 3: "Array3D", 4: "Array4D", 5: "Array5D"}


def columns_of(features: Sequence[OutFeature]) -> list[OutFeature]:
    """The features that have a column: all but videos."""
    return [feature for feature in features if feature.dtype != "video"]


def row_schema(features: Sequence[OutFeature]) -> Any:
    """The schema of rows of steps: the features without videos, then the columns of `DERIVED`."""
    pa = pyarrow()
    columns = columns_of(features)
    fields = [(feature.name, _type_of(feature)) for feature in columns]
    fields += [(name, pa.from_numpy_dtype(np.dtype(dtype))) for name, dtype in DERIVED.items()]
    said = {feature.name: _said_of(feature) for feature in columns}
    said |= {name: {"dtype": dtype, "_type": "Value"} for name, dtype in DERIVED.items()}
    return pa.schema(fields, {_HUGGINGFACE: json.dumps({"info": {"features": said}})})


def _stored(feature: OutFeature) -> Any:
    pa = pyarrow()
    return pa.ipc.read_schema(pa.py_buffer(feature.stored))


def _type_of(feature: OutFeature) -> Any:
    pa = pyarrow()
    if feature.stored is not None:
        return _stored(feature).field(0).type
    if feature.dtype == "image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kind = pa.string() if feature.dtype == "string" else pa.from_numpy_dtype(np.dtype(feature.dtype))
    if feature.shape == (1,):
        return kind
    if len(feature.shape) == 1:
        return pa.list_(kind, feature.shape[0])
    for _ in feature.shape:
        kind = pa.list_(kind)
    return kind


def _said_of(feature: OutFeature) -> dict[str, Any]:
    """The feature in the words of the library ``datasets``."""
    if feature.dtype == "image":
        return {"_type": "Image"}
    if feature.stored is not None:
        stored = _stored(feature)
        said = json.loads((stored.metadata or {}).get(_HUGGINGFACE.encode(), "{}"))
        with suppress(LookupError, TypeError):
            found: dict[str, Any] = said["info"]["features"][stored.names[0]]
            return found
    value = {"dtype": feature.dtype, "_type": "Value"}
    if feature.shape == (1,):
        return value
    if len(feature.shape) == 1:
        # Its later releases say "List", which earlier ones do not know; they understand "Sequence" as well.
        return {"feature": value, "length": feature.shape[0], "_type": "Sequence"}
    return {"shape": list(feature.shape), "dtype": feature.dtype, "_type": _ARRAYS[len(feature.shape)]}


def checked_values(feature: OutFeature, values: NDArray[Any], length: int, where: str) -> NDArray[Any]:
    """An episode's values in the feature's shape.

    Raises:
        FormatError: If they are not what the feature and the episode's length say.
    """
    shape = (length, *feature.shape)
    found = (length, 1) if values.shape == (length,) else values.shape
    if found != shape or values.dtype.name != feature.dtype:
        raise FormatError(
            f"{where}, {feature.name}: {values.dtype.name} {values.shape}, wanted {feature.dtype} {shape}. "
            "Check the source with 'epistream verify'."
        )
    return values.reshape(shape)


def checked_column(feature: OutFeature, column: Any, length: int, where: str) -> Any:
    """An episode's column that is carried over.

    Raises:
        FormatError: If it is not of its type and the episode's length.
    """
    kind = _type_of(feature)
    if len(column) != length or column.type != kind:
        raise FormatError(
            f"{where}, {feature.name}: {len(column)} values of {column.type}, wanted {length} of {kind}. "
            "Download the file again."
        )
    return column


def derived_columns(
    number: int, first_row: int, task_index: NDArray[np.integer[Any]], fps: float
) -> dict[str, NDArray[Any]]:
    """The columns that follow from where the steps of an episode stand, (T,) each.

    They are not of the files' dtypes yet: LeRobot takes the statistics of times before it rounds these.

    Args:
        number: Of the episode.
        first_row: Steps of all episodes before it.
        task_index: (T,)
        fps: Steps a second.
    """
    steps = np.arange(len(task_index))
    values = (steps / fps, steps, np.full(len(steps), number), first_row + steps, task_index)
    return dict(zip(DERIVED, values, strict=True))


class ParquetFile:
    """A file that is written group by group, and fsynced at its end. A context manager."""

    def __init__(self, path: Path, schema: Any) -> None:
        self._path, self._schema = path, schema
        self._file: BinaryIO | None = None
        self._writer: Any = None
        self._gathered: list[Any] = []

    def __enter__(self) -> "ParquetFile":
        with writing(self._path):
            self._file = self._path.open("wb")
            has_pictures = any(pyarrow().types.is_struct(kind) for kind in self._schema.types)
            self._writer = pyarrow("pyarrow.parquet").ParquetWriter(
                self._file,
                self._schema,
                compression="snappy",
                use_dictionary=True,
                write_batch_size=_PICTURES_AT_ONCE if has_pictures else None,
            )
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        assert self._file is not None
        with writing(self._path), self._file:
            if kind is None:
                self._write_gathered()
            self._writer.close()
            self._file.flush()

    def write(self, columns: Sequence[Any]) -> None:
        """One group of rows: an Arrow array of each column."""
        table = pyarrow().Table.from_arrays(list(columns), schema=self._schema)
        with writing(self._path):
            self._writer.write_table(table, max(1, table.num_rows))

    def gather(self, columns: Sequence[Any]) -> None:
        """Rows that come into a group with those before or after them, until it is large enough to be read at once."""
        self._gathered.append(pyarrow().Table.from_arrays(list(columns), schema=self._schema))
        if len(self._gathered) >= _MOST_GATHERED or sum(one.nbytes for one in self._gathered) >= _GROUP_BYTES:
            self._write_gathered()

    def _write_gathered(self) -> None:
        if self._gathered:
            table = pyarrow().concat_tables(self._gathered)
            self._gathered = []
            with writing(self._path):
                self._writer.write_table(table, max(1, table.num_rows))

    @property
    def num_bytes(self) -> int:
        """Written so far."""
        assert self._file is not None
        return self._file.tell()


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """What the operating system refuses while `path` is written, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise PackError(
            f"{path}: cannot be written ({error.strerror or error}), wanted room for it. Make room, and run the same "
            "again: what is complete stays."
        ) from error


def tasks_table(tasks: Sequence[str]) -> Any:
    """Tasks of version 3.0: their numbers, and their texts as what pandas takes for the index of the rows."""
    pa = pyarrow()
    index = "__index_level_0__"
    said = {
        "index_columns": [index],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [
            {
                "name": name,
                "field_name": field,
                "pandas_type": kind,
                "numpy_type": dtype,
                "metadata": None,
            }
            for name, field, kind, dtype in (
                ("task_index", "task_index", "int64", "int64"),
                (None, index, "unicode", "object"),
            )
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.3",
    }
    schema = pa.schema([("task_index", pa.int64()), (index, pa.string())], {"pandas": json.dumps(said)})
    return pa.Table.from_arrays([numbers_column(np.arange(len(tasks))), texts_column(tasks)], schema=schema)


def value_type(value: Any) -> Any:
    """The Arrow type of a column of `meta/episodes`, by one of its values: an array, a list of texts or a number."""
    pa = pyarrow()
    if isinstance(value, np.ndarray):
        kinds = {"f": pa.float64(), "b": pa.bool_(), "u": pa.uint64() if value.dtype == np.uint64 else pa.int64()}
        kind = kinds.get(value.dtype.kind, pa.int64())
        for _ in value.shape:
            kind = pa.list_(kind)
        return kind
    if isinstance(value, list):
        return pa.list_(pa.string())
    return pa.float64() if isinstance(value, float) else pa.int64()


def episode_columns(rows: Sequence[Mapping[str, Any]], schema: Any) -> list[Any]:
    """Rows of `meta/episodes` as Arrow arrays; arrays of a column have one shape."""
    pa = pyarrow()
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if isinstance(values[0], np.ndarray):
            flat = numbers_column(np.stack(values).ravel())
            kind = field.type
            while pa.types.is_list(kind):
                kind = kind.value_type
            columns.append(nested(flat.cast(kind), values[0].shape))
        elif isinstance(values[0], list):
            ends = numbers_column(offsets_of(np.array([len(value) for value in values], np.int64)))
            columns.append(pa.ListArray.from_arrays(ends, texts_column([text for value in values for text in value])))
        else:
            columns.append(numbers_column(np.array(values)))
    return columns
