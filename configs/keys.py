"""The keys of a configuration by their dotted names, and what to say about one that is none."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from epistream.configs.replaced import whereabouts
from epistream.configs.schema import Section, Settings
from epistream.hints import did_you_mean

PRESET_KEY = "preset"


def keys(section: type[Section] = Settings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, field) of every key that holds a value, in the order of the schema."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


NAMES: tuple[str, ...] = tuple(name for name, _ in keys())
_SECTIONS = frozenset(
    ".".join(parts[:n]) for parts in (name.split(".") for name in NAMES) for n in range(1, len(parts))
)
_BY_LAST = {name.rpartition(".")[2]: name for name in NAMES}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of nested mappings; a mapping that is itself a value stays whole."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in _SECTIONS and isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return nested


def full_name(name: str) -> str | None:
    """The dotted name of a key given by it or by its last part alone; None if there is no such key."""
    return name if name in NAMES else _BY_LAST.get(name)


def unknown(name: str, value: Any = None) -> str:
    """What to say about a key that is none, with what it was given."""
    if name in _SECTIONS:
        inside = ", ".join(known[len(name) + 1 :] for known in NAMES if known.startswith(f"{name}."))
        return f"{name}: wanted a mapping with some of {inside}."
    moved = whereabouts(name, value)
    if moved:
        return f"{name}: {moved}"
    sections = f"Known sections: {', '.join(sorted(_SECTIONS))}."
    return f"{name}: no such key. {did_you_mean(name, [*NAMES, PRESET_KEY, *_SECTIONS], sections)}"
