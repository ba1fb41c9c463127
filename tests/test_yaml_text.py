"""YAML as people write it."""

import os
from itertools import pairwise

import pytest
import yaml

from epistream.configs.config import load_config
from epistream.errors import OptionError
from epistream.sharding.layouts.layout_file import read_layout_file
from epistream.sharding.tar.step_mapping import read_step_mapping
from epistream.yaml_text import dump_yaml, parse_yaml, read_yaml

TRICKY = [
    *(
        "a\nb",
        "tab\t",
        "off",
        "on",
        "no",
        "yes",
        "-1:1",
        "1:16",
        "0:100",
        "012",
        "0x10",
        "1e-3",
        "8",
        "null",
        "~",
        "",
        "true",
        "1.5",
    ),
    *("a: b", "#x", "2024-01-01", "=", "<<", ".inf", " x ", "é", "a\nb", "tab\t"),
    *(True, False, None, 1.5, 1e-4, -61, 0, float("inf"), 2**64, [1, 2], [], {}, {"a": {"b": ["0:1"]}}),
]


@pytest.mark.parametrize("value", TRICKY, ids=repr)
def test_value_survives_writing_and_reading(value):
    for one_line in (False, True):
        assert parse_yaml(dump_yaml({"k": value}, one_line=one_line)) == {"k": value}
    assert "\n" not in dump_yaml({"k": value}, one_line=True)


@pytest.mark.parametrize("value", TRICKY, ids=repr)
def test_value_written_is_read_alike_by_other_readers(value):
    assert yaml.safe_load(dump_yaml({"k": value})) == {"k": value}


@pytest.mark.parametrize(
    ("text", "value"),
    [("off", "off"), ("-1:1", "-1:1"), ("1e-3", 0.001), ("1e3", 1000.0), ("-3", -3), ("~", None), ("", None)],
)
def test_value_is_what_it_looks_like(text, value):
    assert parse_yaml(f"k: {text}") == {"k": value}


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: {b: 1, b: 2}", "a: [", "!!python/name:os.system"])
def test_text_that_is_none_is_refused(text):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


def bomb(line):
    """Twelve lines, each of which names the one before nine times: 9**12 values."""
    first = "a: &a {x: 1}" if "<<" in line else "a: &a [x]"
    names = "abcdefghijklm"
    return "\n".join([first, *(line.format(new, ",".join([f"*{old}"] * 9)) for old, new in pairwise(names))])


HOSTILE = {
    "aliases": (bomb("{0}: &{0} [{1}]"), "more than 50,000 values"),
    "merges": (bomb("{0}: &{0} {{<<: [{1}]}}"), "more than 50,000 values"),
    "values": ("[" + "a," * 400_000 + "]", "more than 50,000 values"),
    "lists in lists": ("name: " + "[" * 100_000, "nested deeper than 32 levels"),
    "maps in maps": ("{a: " * 5_000, "nested deeper than 32 levels"),
    "lines in lines": ("\n".join(" " * depth + "a:" for depth in range(1200)), "nested deeper than 32 levels"),
    "itself": ("a: &a [*a]", "*a stands within what it names"),
    "length": ("#" * (1 << 20) + "\n", "wanted at most 1,048,576"),
    "a long number": ("a: " + "1" * 5_000, "a value that cannot be"),
    "a word as a number": ("a: !!int abc", "a value that cannot be"),
    "a tag of Python": ("a: !!python/object/apply:os.getcwd []", "the tag '!!python/object/apply:os.getcwd'"),
    "a tag of YAML": ("a: !!timestamp x", "the tag '!!timestamp'"),
    "a list as a key": ("? [a, b]\n: c", "a list or map as a key"),
    "a key twice": ("a: {b: 1, b: 2}", "the key 'b' is there twice"),
    "a number merged": ("a: {<<: 3}", "expected a mapping"),
    "a control character": ("a: \x00b", "special characters are not allowed"),
    "two documents": ("a: 1\n---\nb: 2", "another document"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_text_that_asks_for_too_much_is_refused(name):
    text, words = HOSTILE[name]
    with pytest.raises(yaml.YAMLError) as caught:
        parse_yaml(text)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", [name for name, (text, _) in HOSTILE.items() if len(text) <= 100_000])
@pytest.mark.parametrize("read", [load_config, read_layout_file, read_step_mapping], ids=lambda read: read.__name__)
def test_file_that_asks_for_too_much_is_refused_by_every_reader(tmp_path, read, name):
    file = tmp_path / "hostile.yaml"
    file.write_text(HOSTILE[name][0])
    with pytest.raises(OptionError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_merges_and_aliases_of_a_sane_size_are_taken():
    text = "base: &base {fps: 30, rotate: 180}\none: {<<: *base, fps: 10}\ntwo: *base\n"
    assert parse_yaml(text) == {
        "base": {"fps": 30, "rotate": 180},
        "one": {"fps": 10, "rotate": 180},
        "two": {"fps": 30, "rotate": 180},
    }


def test_key_of_a_map_that_is_merged_before_it_is_made_is_there_once():
    text = "z: &z {x: 5}\nouter: {inner: &a {<<: *z, x: 1}}\nb: {<<: *a}\n"
    assert parse_yaml(text)["outer"] == {"inner": {"x": 1}}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_file_is_read_with_and_without_a_mark(tmp_path, encoding):
    (tmp_path / "a.yaml").write_bytes("a: é\n".encode(encoding))
    assert read_yaml(tmp_path / "a.yaml", "a map") == {"a": "é"}


def test_file_that_is_no_text_or_no_file_says_so_at_once(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    wanted = {
        "latin.yaml": "no UTF-8 text",
        "folder.yaml": "a folder",
        "pipe.yaml": "a named pipe",
        "none.yaml": "No such file",
    }
    for name, words in wanted.items():
        with pytest.raises(OptionError, match=f"{name}: {words}.*wanted a map in YAML"):
            read_yaml(tmp_path / name, "a map")
    with pytest.raises(OptionError, match="a device"):
        read_yaml("/dev/zero", "a map")
