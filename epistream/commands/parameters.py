"""Options of commands that are options of classes: names, types, ranges, defaults and sentences are read there."""

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import click

from epistream.options import OneOf, Range, options_of


def option(owner: type, name: str, flag: str | None = None, **changes: Any) -> Callable[[Any], Any]:
    """``click.option`` for an option of a class, which itself refuses what lies outside its range.

    Args:
        owner: the class.
        name: of the option, and of the function's argument.
        flag: how it is written, if not as `name`.
        changes: what the command says otherwise, as ``click.option`` takes it.
    """
    found = options_of(owner)[name]
    parts = found.parts
    sentence = found.sentence.replace("if None", "if not given") + "; may be repeated" * changes.get("multiple", False)
    bounds = " and ".join(repr(part) for part in parts if isinstance(part, Range))
    bounds = bounds and next((part for part in parts if isinstance(part, str)), bounds)
    default = found.default
    settings: dict[str, Any] = {
        "type": _type(parts),
        "is_flag": found.kind is bool,
        "metavar": "START:STOP" if found.kind is range else None,
        "default": f"{default.start}:{default.stop}" if isinstance(default, range) else default,
        "show_default": True,
        "help": f"{sentence[:1].upper()}{sentence[1:]}." + (f"  [{bounds}]" if bounds not in sentence else ""),
    }
    return click.option(flag or f"--{name.replace('_', '-')}", name, **{**settings, **changes})


def _type(parts: list[Any]) -> Any:
    for part in parts:
        if get_origin(part) is Literal or isinstance(part, OneOf):
            return click.Choice(list(part.table if isinstance(part, OneOf) else get_args(part)))
    if range in parts:
        return _steps
    return next((kind for kind in (str, int, float, bool) if kind in parts), str)  # a size is a text or a number


def _steps(text: str) -> range:
    first, _, last = text.partition(":")
    try:
        return range(int(first), int(last))
    except ValueError:
        raise click.BadParameter(f"{text!r}, wanted START:STOP, for example 0:100") from None
