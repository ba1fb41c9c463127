"""`epistream tune` and `epistream config`."""

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hdf5_files import aloha_jpeg

import epistream as es
from epistream.commands import cli
from epistream.errors import OptionError


@pytest.fixture(scope="module")
def shards(tmp_path_factory, example_data) -> Path:
    out = tmp_path_factory.mktemp("tune") / "shards"
    es.pack(sorted((example_data / "aloha").glob("*.hdf5")), out, shard_size="1MiB")
    return out


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_tune_prints_yaml_that_loads(shards, tmp_path):
    text = run("tune", shards, "--batch-size", 4, "--set", "stream.features=[action]", "--seconds", 0.02)
    file = tmp_path / "run.yaml"
    file.write_text(text)
    settings = es.load_config(file).settings
    assert (settings.stream.batch_size, settings.stream.features) == (4, ["action"])
    assert settings.source == str(shards)


def test_tune_writes_a_file_and_shows_reasons(shards, tmp_path):
    file = tmp_path / "run.yaml"
    text = run(
        *("tune", shards, "--batch-size", 4, "--obs", "-1:1", "--image-size", 48, 64, "--seconds", 0.02),
        *("--output", file),
    )
    stream = es.load_config(file).stream()
    assert next(iter(stream))["observation.images.top"].shape == (4, 2, 48, 64, 3)
    for word in ("machine", "data", "predicted", "memory", "loader.num_workers", "as stored (jpeg)", "groups of 30"):
        assert word in text


def test_tune_of_unlike_sources_takes_the_patterns_of_what_they_share(tmp_path):
    one = aloha_jpeg(tmp_path / "a.hdf5", 8)
    other = aloha_jpeg(tmp_path / "b.hdf5", 8, cameras=("wrist",))
    folders = [str(tmp_path / "one"), str(tmp_path / "other")]
    for path, folder in zip((one, other), folders, strict=True):
        es.pack(path, folder)
    line = ["tune", *folders, "--batch-size", "2", "--seconds", "0.02"]
    message = str(CliRunner().invoke(cli, line).exception)
    assert "Name only what all of them share" in message
    assert "--feature of commands" in message
    text = run(*line, "--feature", "act*", "--feature", "observation.state")
    assert yaml.safe_load(text)["stream"]["features"] == ["act*", "observation.state"]
    assert "Did you mean 'action'?" in str(CliRunner().invoke(cli, [*line, "--feature", "acton"]).exception)


def test_tune_as_json(shards):
    text = run("tune", shards, "--set", "features=action", "--seconds", 0.02, "--ranks", 2, "--json")
    values = json.loads(text)
    assert values["options"]["ranks"] == 2
    assert values["prediction"]["windows_per_s"] > 0


def test_config_show_names_values_and_origins(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: large\nstream: {batch_size: 3}\n")
    rows = {row["key"]: row for row in json.loads(run("config", "show", file, "--set", "seed=9", "--json"))}
    assert (rows["stream.batch_size"]["value"], rows["stream.batch_size"]["from"]) == (3, str(file))
    assert rows["cache.parallel_requests"]["from"] == "preset large"
    assert (rows["stream.seed"]["value"], rows["stream.seed"]["from"]) == (9, "argument")


def test_config_show_has_blocks_and_video_of_a_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "order: {by: blocks, block_steps: 16, pool_blocks: 64}\npack: {codec: h264, crf: 20, gop: 8, preset: fast}\n"
    )
    shown = {row["key"]: row["value"] for row in json.loads(run("config", "show", file, "--json"))}
    assert [shown[f"order.{key}"] for key in ("by", "block_steps", "pool_blocks")] == ["blocks", 16, 64]
    assert [shown[f"pack.{key}"] for key in ("codec", "crf", "gop", "preset")] == ["h264", 20, 8, "fast"]
    order = es.load_config(file).stream_arguments()["order"]
    assert (order.by, order.block_steps, order.pool_blocks) == ("blocks", 16, 64)


def test_config_show_as_yaml_loads_to_the_same(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(run("config", "show", "xlarge", "--set", "stream.window.obs=-1:1", "--yaml"))
    assert es.load_config(file).settings == es.load_config("xlarge", obs="-1:1").settings


def test_config_show_as_a_table_fits_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = re.sub(r"\x1b\[[0-9;]*m", "", run("config", "show", "small", "--set", "storage_options={a: 1, b: [1, 2]}"))
    assert max(map(len, text.splitlines())) <= 80
    for row in es.load_config().rows():
        assert any(line.startswith(f"{row[0]} ") for line in text.splitlines()), "keys are never folded"
    assert "64 (preset small)" in text


@pytest.mark.parametrize("change", ["seed", "seed=[", "seed=!!python/name:os.system"])
def test_config_change_that_is_none_is_refused(change):
    result = CliRunner().invoke(cli, ["config", "show", "--set", change])
    assert result.exit_code == 2
    assert ("seed: the value is no YAML" if "=" in change else repr(change)) in result.output


def test_config_with_an_unknown_key_names_the_nearest():
    with pytest.raises(OptionError, match=r"Did you mean 'loader\.prefetch'"):
        CliRunner().invoke(cli, ["config", "show", "--set", "loader.prefech=3"], catch_exceptions=False)


def test_bench_takes_a_configuration_and_options_win(shards, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("stream: {batch_size: 5, features: [action], window: {action: 0:7}}\n")
    text = run("bench", shards, "--config", file, "--batch-size", 4, "--rounds", 1, "--seconds", 0.01, "--json")
    # 4 windows of 7 actions of 14 float32, masks and indexes.
    assert ", batch 4 (0.0 MiB), cache auto" in json.loads(text)["title"]
