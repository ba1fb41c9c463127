"""Reads and writes YAML as people write it: ``off`` is a word, ``-1:1`` no number in base 60, no key counts twice."""

import re
from typing import Any

import yaml

# PyYAML follows YAML 1.1, where off, no and yes are booleans, -1:1 is -61 and 1e-3 is a text. These are the patterns of
# the core schema of YAML 1.2.2, 10.3.2: https://yaml.org/spec/1.2.2/#1032-tag-resolution
_PATTERNS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)


class _Loader(yaml.SafeLoader):
    """With the patterns above, and without repeated keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is there twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either version of YAML would take for something else than a text."""


for _tag, _pattern, _first in _PATTERNS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def parse_yaml(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: it makes nothing but plain values


def dump_yaml(value: Any, *, one_line: bool = False) -> str:
    """The text of plain values, in the order given, for `parse_yaml` and any other reader of YAML."""
    style = True if one_line else None
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, default_flow_style=style, width=10**6 if one_line else 100
    )
    return text.strip().removesuffix("...").rstrip() if one_line else text
