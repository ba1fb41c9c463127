"""What a configuration may say: the options of the classes that it makes, as YAML writes them.

Keys are the names of the options, so nothing has two names; ranges, defaults and sentences are read from the classes.
Here stands only which options are keys, and what YAML writes otherwise than Python.
"""

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, create_model

from epistream.cache.options import CacheOptions
from epistream.errors import FormatError, OptionError
from epistream.loader.frames.frames import Side
from epistream.loader.loader import Number, StreamingLoader
from epistream.loader.monitoring.monitor import MonitorOptions
from epistream.loader.options import StreamOptions
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.window import Window, ascending
from epistream.loader.samples.action_delta import DeltaKind
from epistream.loader.samples.collate import KeptDtype
from epistream.loader.samples.formats.names import FORMATS
from epistream.loader.samples.normalize import Mode as Normalize
from epistream.options import OneOf, options_of
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.options import Side as PackedSide
from epistream.sharding.selecting.selection import parse_selection
from epistream.shown_urls import shown

_MOST_STEPS = 1_000_000  # of a window


def _offsets(value: Any) -> Any:
    if isinstance(value, range):
        return list(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return [value]
    if isinstance(value, str):
        first, colon, last = value.partition(":")
        try:
            start, stop = int(first), int(last) if colon else int(first) + 1
        except ValueError:
            raise ValueError(f"{value!r}, wanted START:STOP, for example 0:100") from None
        if stop - start > _MOST_STEPS:  # before a list of them is made
            raise ValueError(f"{value!r:.40}, wanted START:STOP of at most {_MOST_STEPS:,} steps, for example 0:100")
        return list(range(start, stop))
    return list(value) if isinstance(value, tuple) else value


def _write_offsets(steps: Iterable[int]) -> str | list[int]:
    """A run as START:STOP, anything else as it is."""
    numbers = list(steps)
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]}:{numbers[-1] + 1}"
    return numbers


Offsets = Annotated[list[int], BeforeValidator(_offsets), AfterValidator(ascending), PlainSerializer(_write_offsets)]


class _Shown:
    """Has the `repr` of a value, without secrets of URLs in it."""

    def __init__(self, value: Any) -> None:
        self._text = shown(repr(value))

    def __repr__(self) -> str:
        return self._text


class Section(BaseModel):
    """A group of keys. Unknown keys are errors, and so are values of another type: "8" is no number."""

    # Inputs may be secrets, and an error is shown with what it came of.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        hide_input_in_errors=True,
    )

    def __repr_args__(self) -> Any:
        # A source is a URL or a list of them, which may have queries and passwords.
        return [(name, _Shown(value) if name == "source" else value) for name, value in super().__repr_args__()]

    if TYPE_CHECKING:  # keys come from the classes while the program runs

        def __getattr__(self, name: str) -> Any: ...


def _section(name: str, owner: type, keys: Collection[str] = (), /, **written: Any) -> type[Section]:
    """The options of a class as keys.

    Args:
        name: of the result in this module, by which pickle finds it.
        owner: the class.
        keys: which of its options; all by default.
        written: the types that YAML has instead, or types with fields; None for an option that is no key.
    """
    options = options_of(owner)
    fields: dict[str, Any] = {}
    for key in dict.fromkeys((*(keys or options), *written)):
        kind = written[key] if key in written else options[key].kind
        if isinstance(kind, tuple):
            fields[key] = kind
        elif isinstance(kind, type) and issubclass(kind, Section):
            fields[key] = (kind, kind())
        elif kind is not None:
            sentence = options[key].sentence + ", START:STOP or a list" * (kind is Offsets)
            sentence = re.sub(r"\b(None|True|False)\b", lambda word: _WORDS[word[0]], sentence)
            fields[key] = (kind, Field(options[key].default, description=sentence))
    return create_model(name, __base__=Section, **fields)


T = TypeVar("T")
# From Python, `load_config` may be given tuples and sets, and a `Window` that holds tuples; what they hold is strict.
_List = Annotated[list[T], Field(strict=False)]


def _pair(kind: Any) -> Any:
    return Annotated[_List[kind], Field(min_length=2, max_length=2)] | None


def _selecting(episodes: Any) -> Any:
    try:
        parse_selection(episodes)
    except (OptionError, FormatError) as error:
        raise ValueError(str(error).removeprefix("episodes: ")) from error
    return episodes


_WORDS = {"None": "null", "True": "true", "False": "false"}
_Names = Annotated[_List[str], BeforeValidator(lambda names: [names] if isinstance(names, str) else names)]
_NUM_WORKERS = "worker processes of each rank; auto is this machine's cores over its ranks, at most 16"
_STORAGE = "for fsspec, flat or by protocol; keep secrets out of files"
WindowSection = _section(
    "WindowSection", Window, obs=Offsets, action=Offsets, overrides=dict[str, Offsets], must_fit=_pair(int)
)
StreamSection = _section(
    "StreamSection",
    StreamOptions,
    window=WindowSection,
    features=_Names | None,
    image_size=_pair(Side),
    sample_format=Annotated[str, OneOf(FORMATS)] | None,
    delta_timestamps=dict[str, _List[float]] | None,
    action_delta=DeltaKind | None,
    dtypes=dict[str, KeptDtype] | None,
    normalize=Normalize | dict[str, Normalize] | None,
    layout=str | None,
    episodes=Annotated[str | int | _List[int], AfterValidator(_selecting)] | None,
    storage_options=(dict[str, Any], Field({}, description=_STORAGE, repr=False)),
    # Sections of their own, one number for each episode, and a function.
    **dict.fromkeys(("order", "cache", "repetitions", "transform")),
)
OrderSection = _section("OrderSection", OrderOptions, shuffle=None, seed=None)
CacheSection = _section("CacheSection", CacheOptions)
LoaderSection = _section(
    "LoaderSection",
    StreamingLoader,
    num_workers=(Number | Literal["auto"], Field("auto", description=_NUM_WORKERS)),
    device=str | None,
    **dict.fromkeys(("stream", "monitor", "on_device")),
)
MonitorSection = _section("MonitorSection", MonitorOptions)
PackSection = _section(
    "PackSection",
    PackOptions,
    ("codec", "quality", "crf", "gop", "preset", "image_size", "shard_size"),
    image_size=_pair(PackedSide),
)
_FIELDS: dict[str, Any] = {
    "source": (str | _List[str] | None, Field(None, description="what to stream, as EpisodeStream takes it")),
    "stream": (StreamSection, StreamSection()),
    "order": (OrderSection, OrderSection()),
    "cache": (CacheSection, CacheSection()),
    "loader": (LoaderSection, LoaderSection()),
    "monitor": (MonitorSection, MonitorSection()),
    "pack": (PackSection, PackSection()),
}
Settings = create_model("Settings", __base__=Section, **_FIELDS)
