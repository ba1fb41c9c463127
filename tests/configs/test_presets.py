"""The four presets: valid, different, and each value in use."""

import pytest

import epistream as es
from epistream.configs.keys import flatten
from epistream.configs.presets import PRESETS, preset_for, preset_text, preset_values


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_valid_and_each_of_its_values_stands(name):
    config = es.load_config(preset=name)
    rows = {key: (value, origin) for key, value, origin, _ in config.rows()}
    for key, value in flatten(preset_values(name)):
        assert rows[key] == (value, f"preset {name}")


@pytest.mark.parametrize("name", PRESETS)
def test_preset_says_why(name):
    assert preset_text(name).startswith("# ")


def test_presets_grow_with_the_data():
    configs = [es.load_config(preset=name).settings for name in PRESETS]
    mixed = [config.order.resident_shards * config.pack.shard_size for config in configs]
    assert mixed == sorted(mixed)
    assert len(set(mixed)) == 4
    # What is mixed at a time must not exceed what the smallest dataset of the preset holds many times over.
    assert [size >> 30 for size in mixed] == [1, 4, 8, 16]


@pytest.mark.parametrize(
    ("num_bytes", "name"),
    [
        (0, "small"),
        (999_999_999, "small"),
        (10**9, "medium"),
        (10**10 - 1, "medium"),
        (10**10, "large"),
        (10**11 - 1, "large"),
        (10**11, "xlarge"),
        (10**18, "xlarge"),
    ],
)
def test_preset_for_a_size(num_bytes, name):
    assert preset_for(num_bytes) == name
