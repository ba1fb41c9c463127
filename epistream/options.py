"""Options: a class says once what each may be, in its annotations and docstring; all who ask read it there.

pydantic checks classes (`check`) and configurations by the annotations; commands make their parameters of them. The
docstring is the one place of sentences, because editors and `help` show it: the first sentence of
an option stands for it in tables and in the help of commands.
"""

import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from annotated_types import Interval

from epistream.errors import OptionError
from epistream.hints import did_you_mean
from epistream.units import exact_size, parse_size

T = TypeVar("T")


class Range(Interval):
    """Bounds of a number: ``Annotated[int, Range(ge=1, le=100)]``. In words they are "1 to 100"."""

    def __repr__(self) -> str:
        if self.ge is not None and self.le is not None:
            return f"{self._text(self.ge)} to {self._text(self.le)}"
        words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        bounds = {word: getattr(self, name) for name, word in words.items()}
        return " and ".join(f"{word} {self._text(bound)}" for word, bound in bounds.items() if bound is not None)

    def _text(self, bound: Any) -> str:
        return str(bound)


class SizeRange(Range):
    """Bounds of a size: bytes, or text such as ``"8GiB"``. Options hold what was given, pydantic makes bytes of it."""

    def __iter__(self) -> Iterator[Any]:
        yield _Bytes()
        yield from super().__iter__()

    def _text(self, bound: Any) -> str:
        units = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
        return next((f"{bound // factor:.0f} {unit}" for unit, factor in units if bound >= factor), f"{bound} bytes")


class _Bytes:
    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        write = core_schema.plain_serializer_function_ser_schema(exact_size)
        return core_schema.no_info_after_validator_function(parse_size, handler(source), serialization=write)


@dataclass(frozen=True, eq=False)
class OneOf:
    """The names of a table, as it is when somebody asks: ``Annotated[str, OneOf(CODECS)]``."""

    table: Collection[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._read, handler(source))

    def _read(self, name: str) -> str:
        if name not in self.table:
            *others, last = self.table
            raise ValueError(f"{name!r}, wanted {', '.join(others)} or {last}")
        return name


_WEEK_S = 7 * 86_400
Count = Annotated[int, Range(ge=1)]
Seconds = Annotated[float, Range(gt=0, le=_WEEK_S)]
# Of waits that may be switched off: 0 does not wait.
Patience = Annotated[float, Range(ge=0, le=_WEEK_S)]
Size = Annotated[int | str, SizeRange(ge=0)]


@dataclass(frozen=True)
class Option:
    """One option of a class: its annotation, its default, and the first sentence of its description."""

    kind: Any
    default: Any
    sentence: str

    @property
    def parts(self) -> list[Any]:
        """The types of the annotation and what it says of them, side by side."""
        return list(_parts(self.kind))


def _parts(kind: Any) -> Iterator[Any]:
    if get_origin(kind) in (Annotated, Union, UnionType):
        for inner in get_args(kind):
            yield from _parts(inner)
    else:
        yield kind


@cache
def options_of(owner: type) -> Mapping[str, Option]:
    """The options of a class in the order of its docstring: the arguments of its constructor."""
    hints = get_type_hints(owner if is_dataclass(owner) else owner.__init__, include_extras=True)  # type: ignore[misc]
    sentences = _sentences(inspect.cleandoc(owner.__doc__ or ""))
    defaults = {name: parameter.default for name, parameter in inspect.signature(owner).parameters.items()}
    for item in fields(owner) if is_dataclass(owner) else ():
        if item.default_factory is not MISSING:
            defaults[item.name] = item.default_factory()
    options = {name: Option(hints[name], default, sentences.get(name, "")) for name, default in defaults.items()}
    return {name: options[name] for name in (*sentences, *options) if name in options}


def _sentences(docstring: str) -> dict[str, str]:
    section = re.search(r"^(?:Args|Attributes):\n(.*?)(?:\n\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    described = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()).partition(". ")[0].removesuffix(".") for name, text in described}


def check(options: Any, where: str = "") -> None:
    """Refuse what the annotations of a class do not allow; for its ``__post_init__``.

    numpy's numbers become Python's, also in lists and tuples, and lists tuples, which can be hashed; all else is kept
    as it was given.

    Args:
        options: an instance of a dataclass.
        where: what stands before the name of the option in the message.

    Raises:
        OptionError: an option that cannot be.
    """
    owner = type(options)
    # Defaults are class attributes and right; a class of defaults alone costs no model, 2 ms of the first batch.
    given = {name: value for name, value in vars(options).items() if value is not getattr(owner, name, MISSING)}
    for name, value in check_values(owner, given, where).items() if given else ():
        object.__setattr__(options, name, value)


def check_values(owner: type, values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """`check` of some arguments of a class's constructor, by their names."""
    # Not imported above: it takes 12 MB and 50 ms of processes that only take options over, such as workers.
    from pydantic import ValidationError

    plain = {name: _plain(value) for name, value in values.items()}
    try:
        _model(owner)(**plain)
    except ValidationError as failed:
        errors = failed.errors()
        name = str(errors[0]["loc"][0])
        option = options_of(owner)[name]
        ours = [error for error in errors if error["loc"][0] == name]
        # Where an option may be several things, it was meant as the one that was understood farthest.
        depth = max(len(error["loc"]) for error in ours)
        each = dict.fromkeys(_wanted(error, option.parts) for error in ours if len(error["loc"]) == depth)
        cure = "Leave it out for the default." if option.default is None else f"The default is {option.default!r}."
        cure = "" if option.default is inspect.Parameter.empty else f" {cure}"
        raise OptionError(f"{where}{name}: {values[name]!r:.80}, wanted {', or '.join(each)}.{cure}") from None
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(_plain, value)) if type(value) in (list, tuple) else value


@cache
def _model(owner: type) -> Any:
    from pydantic import ConfigDict, create_model

    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    kinds: dict[str, Any] = {name: (option.kind, None) for name, option in options_of(owner).items()}
    return create_model(owner.__name__, __config__=config, **kinds)


def _wanted(error: Mapping[str, Any], parts: Sequence[Any]) -> str:
    """What is wanted where pydantic found an error in an option of such parts: in their words, or else in its own."""
    context = error.get("ctx", {})
    bounds = [part for part in parts if isinstance(part, Range)]
    broken = next((one for one in bounds if any(getattr(one, name, None) == context[name] for name in context)), None)
    # A text says better what the type and the bounds before it want.
    for part in parts if broken is None else parts[parts.index(broken) :]:
        if isinstance(part, str):
            return part
    if broken is not None:
        return repr(broken)
    if error["type"] == "literal_error":
        return f"one of {', '.join(name for part in parts if get_origin(part) is Literal for name in get_args(part))}"
    message: str = error["msg"].rstrip(".")
    what = context.get("class", context.get("class_name", message.removeprefix("Input should be a valid ")))
    words = {"boolean": "True or False", "Input should be callable": "a function", "Collection": "a list"}
    if what in words:
        return words[what]
    if what != message:
        return f"a{'n' * (what[0] in 'AEIOUi')} {what}"
    return message.partition("wanted ")[2] or message.removeprefix("Input should be ")


def changed(options: T, changes: Mapping[str, Any], where: str) -> T:
    """Options with some of them replaced.

    Raises:
        OptionError: a name that is no option; the nearest one is named.
    """
    known = [item.name for item in fields(options)]  # type: ignore[arg-type]
    for name in changes:
        if name not in known:
            hint = did_you_mean(name, known, f"Options are {', '.join(sorted(known))}.")
            raise OptionError(f"{where}: no option {name!r}. {hint}")
    return replace(options, **changes)  # type: ignore[type-var]
