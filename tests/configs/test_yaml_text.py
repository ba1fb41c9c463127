"""YAML as people write it."""

import pytest
import yaml

from epistream.configs.yaml_text import dump_yaml, parse_yaml

TRICKY = [
    *("off", "on", "no", "yes", "-1:1", "1:16", "0:100", "012", "0x10", "1e-3", "8", "null", "~", "", "true", "1.5"),
    *("a: b", "#x", "2024-01-01", "=", "<<", ".inf", " x ", "é"),
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
