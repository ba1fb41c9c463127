"""Options: a class says once what each may be, in its annotations and docstring; all who ask read it there.

`check` refuses what the annotations do not allow, pydantic reads them for YAML, and commands for their parameters. The
docstring is the one place of sentences, because editors and `help` show it: the first sentence of an option stands
for it in tables and in the help of commands.
"""

import inspect
import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from epistream.errors import OptionError
from epistream.hints import did_you_mean
from epistream.units import exact_size, parse_size

T = TypeVar("T")


class Limit(ABC):
    """What an annotation says of its type beside it, as metadata."""

    @abstractmethod
    def refusal(self, value: Any) -> str | None:
        """What is wanted instead of a value of the type; None for one that may be."""

    def read(self, value: Any) -> Any:
        """The value for pydantic, which makes its own message of a ValueError."""
        if wanted := self.refusal(value):
            raise ValueError(f"{value!r}, wanted {wanted}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.read, handler(source))


class OneOf(Limit):
    """The names of a table, as it is when somebody asks: ``Annotated[str, OneOf(CODECS)]``."""

    def __init__(self, table: Collection[str]) -> None:
        self.table = table

    def __repr__(self) -> str:
        *names, last = self.table
        return f"{', '.join(names)} or {last}"

    def refusal(self, value: Any) -> str | None:
        """The names, unless it is one of them."""
        return None if value in self.table else repr(self)


class Range(Limit):
    """Bounds of a number, as metadata in its annotation: ``Annotated[int, Range(1, 100)]``.

    Args:
        least: the lowest number.
        most: the highest number.
        above: what the number is greater than.
        below: what the number is less than.
    """

    def __init__(
        self,
        least: float | None = None,
        most: float | None = None,
        *,
        above: float | None = None,
        below: float | None = None,
    ) -> None:
        bounds = {"ge": least, "gt": above, "le": most, "lt": below}
        self._bounds = {name: bound for name, bound in bounds.items() if bound is not None}

    def __repr__(self) -> str:
        if self._bounds.keys() == {"ge", "le"}:
            return f"{self._text(self._bounds['ge'])} to {self._text(self._bounds['le'])}"
        words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        return " and ".join(f"{words[name]} {self._text(bound)}" for name, bound in self._bounds.items())

    def _text(self, bound: float) -> str:
        return str(bound)

    def refusal(self, value: Any) -> str | None:
        """The bounds, unless it lies inside."""
        inside = all(getattr(operator, name)(value, bound) for name, bound in self._bounds.items())
        return None if inside else repr(self)

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return {**handler(source), **self._bounds}


class SizeRange(Range):
    """Bounds of a size: bytes, or text such as ``"8GiB"``. Options hold what was given, pydantic makes bytes of it."""

    def _text(self, bound: float) -> str:
        units = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
        return next((f"{bound // factor:.0f} {unit}" for unit, factor in units if bound >= factor), f"{bound} bytes")

    def refusal(self, value: Any) -> str | None:
        """What a size is, or the bounds, unless it is one inside."""
        try:
            return _wanted(value, int | str) or super().refusal(parse_size(value))
        except OptionError as error:
            return str(error).partition(", wanted ")[2].removesuffix(".")

    def read(self, value: Any) -> int:
        """Its bytes."""
        return parse_size(super().read(value))

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        write = core_schema.plain_serializer_function_ser_schema(exact_size)
        return core_schema.no_info_plain_validator_function(self.read, serialization=write)


_NAMES = {
    **{"bool": "True or False", "int": "an integer", "float": "a number", "str": "a text"},
    **{"Callable": "a function", "Iterable": "a list", "Mapping": "a mapping"},
}
_WEEK_S = 7 * 86_400
Count = Annotated[int, Range(1)]
Seconds = Annotated[float, Range(above=0, most=_WEEK_S)]
# Of waits that may be switched off: 0 does not wait.
Patience = Annotated[float, Range(0, _WEEK_S)]
Size = Annotated[int | str, SizeRange(0)]


@dataclass(frozen=True)
class Option:
    """One option of a class: its annotation, its default, and the first sentence of its description."""

    kind: Any
    default: Any
    sentence: str


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

    numpy's numbers are taken for Python's, and kept as such.

    Args:
        options: an instance of a dataclass.
        where: what stands before the name of the option in the message.

    Raises:
        OptionError: an option that cannot be.
    """
    check_values(type(options), vars(options), where)
    for name, value in vars(options).items():
        if isinstance(value, np.generic):
            object.__setattr__(options, name, value.item())


def check_values(owner: type, values: Mapping[str, Any], where: str = "") -> None:
    """`check` of some arguments of a class's constructor, by their names."""
    for name, value in values.items():
        option = options_of(owner)[name]
        wanted = _wanted(value.item() if isinstance(value, np.generic) else value, option.kind)
        if wanted is not None:
            cure = "Leave it out for the default." if option.default is None else f"The default is {option.default!r}."
            cure = "" if option.default is inspect.Parameter.empty else f" {cure}"
            raise OptionError(f"{where}{name}: {value!r:.80}, wanted {wanted}.{cure}")


def _wanted(value: Any, kind: Any) -> str | None:
    """What is wanted instead of a value that is not of a kind; None if it is."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _wanted_by_notes(value, *inner)
    if origin in (Union, UnionType):
        each = [_wanted(value, one) for one in inner if one is not NoneType or value is None]
        return None if None in each else ", or ".join(filter(None, each))
    if origin is Literal:
        return None if isinstance(value, str) and value in inner else f"one of {', '.join(inner)}"
    if origin is tuple:
        return _wanted_inside(value, inner)
    # numpy's arrays and the views of dictionaries are no Sequence, but serve as one.
    found = Iterable if origin is Sequence else origin or kind
    if not isinstance(found, type) or _is_one(value, found):
        return None
    name = found.__name__
    return _NAMES.get(name, f"a{'n' * (name[0] in 'AEIOU')} {name}")


def _wanted_by_notes(value: Any, kind: Any, *notes: Any) -> str | None:
    """Likewise, of what is annotated. A text says better what the type and the bounds before it want."""
    wanted = _wanted(value, kind)
    for note in notes:
        if wanted is not None and isinstance(note, str):
            return note
        if wanted is None and isinstance(note, Limit):
            wanted = note.refusal(value)
    return wanted


def _wanted_inside(value: Any, inner: tuple[Any, ...]) -> str | None:
    if not isinstance(value, tuple | list) or (inner[-1] is not ... and len(value) != len(inner)):
        return "a tuple"
    each = inner[:1] * len(value) if inner[-1] is ... else inner
    return next(filter(None, map(_wanted, value, each)), None)


def _is_one(value: Any, kind: type) -> bool:
    """isinstance, but True and False are no numbers, integers are numbers, and infinities are none."""
    if kind not in (int, float):
        return isinstance(value, kind)
    if isinstance(value, float):
        return kind is float and math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


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
