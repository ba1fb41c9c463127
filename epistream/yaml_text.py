"""Reads and writes YAML as people write it: ``off`` is a word, ``-1:1`` no number in base 60, no key counts twice.

All YAML of the project comes in here, and within bounds: a file of 500 bytes can stand for 10**12 values by naming
lists of lists again and again, and one that is nested deeper than Python's stack ends the process.
"""

import codecs
import re
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from epistream.errors import OptionError
from epistream.plain_files import refuse_other_than_plain

# PyYAML reads about 0.3 MB/s (`python -m timeit` over a list of names); the longest files are lists of sources.
MAX_BYTES = 1 << 20
MAX_DEPTH = 32
# Values, counted as often as aliases and merges repeat them.
MAX_VALUES = 50_000

# PyYAML follows YAML 1.1, where off, no and yes are booleans, -1:1 is -61 and 1e-3 is a text. These are the patterns of
# the core schema of YAML 1.2.2, 10.3.2: https://yaml.org/spec/1.2.2/#1032-tag-resolution
_PATTERNS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)
_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = {_TAG + name for name in ("str", "map", "seq", *(name for name, _, _ in _PATTERNS))}
_MERGE = f"{_TAG}merge"


class _Loader(yaml.SafeLoader):
    """With the patterns above, without repeated keys, and within the bounds."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_composed = 0
        self._num_values: dict[int, int] = {}  # of complete nodes, by id: the tree keeps them alive

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        self._num_composed += 1
        if self._depth > MAX_DEPTH:
            raise _refused(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        if self._num_composed > MAX_VALUES:  # before the rest of them costs its time
            raise _too_many(event.start_mark)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._num_values:
                raise _refused(f"*{event.anchor} stands within what it names", event.start_mark)
            return node
        if node.tag not in _KNOWN_TAGS:
            raise _refused(f"the tag {node.tag.replace(_TAG, '!!')!r}, wanted plain values", event.start_mark)
        self._num_values[id(node)] = self._count(node)
        return node

    def _count(self, node: Any) -> int:
        """The values that a node stands for, once it is sure that its keys can be."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        is_map = isinstance(node, yaml.MappingNode)
        children = [child for pair in node.value for child in pair] if is_map else node.value
        if is_map:
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise _refused("a list or map as a key, wanted a name", key.start_mark)
                if key.value in seen:
                    raise _refused(f"the key {key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
                if key.value == "<<" and key.style is None:
                    key.tag = _MERGE
        num_values = 1 + sum(self._num_values[id(child)] for child in children)
        if num_values > MAX_VALUES:
            raise _too_many(node.start_mark)
        return num_values


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either version of YAML would take for something else than a text."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> Any:
    # With quotes of another kind, a text of several lines would not stay on one.
    return dumper.represent_scalar(f"{_TAG}str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
for _name, _pattern, _first in _PATTERNS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), list(_first))


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML text.

    Raises:
        yaml.YAMLError: it is none, or outside of the bounds.
    """
    if len(text) > MAX_BYTES:
        raise _refused(f"{len(text):,} characters, wanted at most {MAX_BYTES:,}", None)
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: it makes nothing but plain values
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, or 'abc' with the tag !!int
        raise _refused(f"a value that cannot be ({error})", None) from error


def read_yaml(path: str | PathLike[str], wanted: str) -> Any:
    """The plain values of a YAML file in UTF-8, or in UTF-16 with its mark, as some shells write it.

    Args:
        path: A file.
        wanted: What it should be, for the message.

    Raises:
        OptionError: It cannot be read, or is no YAML, or is outside of the bounds.
    """
    try:
        text = _read_text(Path(path))
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror or error}, wanted {wanted} in YAML. Check the path.") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{path}: no UTF-8 text ({error}), wanted {wanted} in YAML. Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise OptionError(f"{path}: {error}, wanted {wanted} in YAML. Check the path.") from error
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise OptionError(f"{path}: no YAML ({problem_of(error)}), wanted {wanted}. Correct it.") from None


def dump_yaml(value: Any, *, one_line: bool = False, a_line_each: bool = False) -> str:
    """The text of plain values, in the order given, for `parse_yaml` and any other reader of YAML.

    Lists and maps that hold no others stand on one line, unless there is to be a line for each of their values.
    """
    style = True if one_line else False if a_line_each else None
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=style,
        width=10**6 if one_line else 100,
    )
    return text.strip().removesuffix("...").rstrip() if one_line else text


def problem_of(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text and where, without quoting it: it may hold secrets."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
    return f"{problem}, line {mark.line + 1}, column {mark.column + 1}" if mark is not None else str(problem)


def _read_text(path: Path) -> str:
    refuse_other_than_plain(path)
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _refused(f"more than {MAX_BYTES:,} bytes", None)
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf_16 else "utf-8-sig")


def _too_many(mark: Any) -> yaml.YAMLError:
    return _refused(f"more than {MAX_VALUES:,} values, aliases counted", mark)


def _refused(problem: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)
