"""`epistream bench`: every row is there, compared with its own bound, and fits a terminal of 80 columns."""

import json
import shutil

import pytest
from click.testing import CliRunner

import epistream as es
from epistream.commands.bench import command
from epistream.loader.measuring.bench import BenchRow, run_bench
from epistream.loader.measuring.bench_options import BenchOptions

QUICK = ["--rounds", "2", "--seconds", "0.02", "--batch-size", "8", "--action", "0:4", "--parallel", "1"]


@pytest.fixture(scope="module")
def shards(example_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "shards"
    es.pack(example_data / "aloha", out, image_size=(64, 48))
    return str(out)


def test_bench_json_has_every_way_of_running_beside_its_bound(shards):
    done = CliRunner().invoke(command, [shards, *QUICK, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [
        *("bare decode x 1", "1 processes", "1 threads"),
        *("bare copy x 1", "1 processes, decoded", "1 threads, decoded"),
    ]
    assert [row["bound"] for row in rows.values()] == ["bare decode x 1"] * 3 + ["bare copy x 1"] * 3
    assert all(len(row["windows_per_s"]) == 2 for row in rows.values())
    assert rows["1 threads, decoded"]["shm_bytes"] >= 140 * 2 * 48 * 64 * 3
    assert result["share_of_bound"]["bare decode x 1"] == 1.0


def test_bench_table_fits_80_columns(shards):
    done = CliRunner(env={"COLUMNS": "80"}).invoke(command, [shards, *QUICK, "--no-once"])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    for heading in ("windows/s", "min-max", "of bound", "CPU s", "first", "PSS"):
        assert heading in done.stdout
    assert "decoded" not in done.stdout


def test_bench_of_some_features_measures_these_and_names_those_that_are_not_there(shards):
    line = [*QUICK, "--rounds", "1", "--no-once", "--json"]
    done = CliRunner().invoke(command, [shards, *line, "--feature", "act*", "--feature", "observation.images.top"])
    assert done.exit_code == 0, done.output
    title = json.loads(done.stdout)["title"]
    assert f"{8 * (4 * 14 * 4 + 48 * 64 * 3) / 2**20:.1f} MiB" in title
    failed = CliRunner().invoke(command, [shards, *line, "--feature", "acton"])
    assert "features: ['acton'] not in this dataset" in str(failed.exception)
    assert "Did you mean 'action'?" in str(failed.exception)


def test_bench_of_some_features_wins_over_those_of_the_configuration(shards, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("stream: {features: [observation.state], window: {action: '0:4'}}")
    line = [*QUICK, "--rounds", "1", "--json", "--config", str(file), "--action", "0:4", "--feature", "act*"]
    done = CliRunner().invoke(command, [shards, *line])
    assert done.exit_code == 0, (done.output, done.exception)


def test_bench_of_nonsense_is_refused():
    for arguments in (["--parallel", "two"], ["--parallel", "0"], ["--obs", "5"]):
        assert CliRunner().invoke(command, ["nowhere", *arguments]).exit_code != 0


def test_bench_share_is_the_median_of_the_rounds_shares():
    bound = BenchRow("bound", [100.0, 1000.0, 10.0])
    assert BenchRow("row", [50.0, 900.0, 9.5]).share_of(bound) == 0.9


def test_bench_leaves_no_cache_behind(shards, tmp_path):
    from epistream.cache.options import CacheOptions

    folder = tmp_path / "cache"
    stream = es.EpisodeStream(shards, batch_size=8, cache=CacheOptions(mode="shm", directory=str(folder)))
    result = run_bench(shards, BenchOptions(rounds=1, seconds=0.01, parallel=1), stream)
    assert [row.name for row in result.rows] == ["bare decode x 1", "1 processes", "1 threads"]
    assert not folder.exists()
    shutil.rmtree(tmp_path)


def test_bench_of_videos_has_a_bound_for_each_order_of_decoding(example_data, tmp_path):
    es.pack(example_data / "aloha", tmp_path / "videos", image_size=(64, 48), codec="h264", gop=8)
    done = CliRunner().invoke(command, [str(tmp_path / "videos"), *QUICK, "--no-once", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    names = ["bare decode at random x 1", "bare decode in order x 1", "1 processes", "1 threads"]
    assert [row["name"] for row in result["rows"]] == names
    assert [row["bound"] for row in result["rows"]] == [names[0], names[1], names[0], names[0]]
    assert result["binding"] == "decode"
    stream = es.EpisodeStream(tmp_path / "videos", batch_size=8, decode="once")
    result = run_bench("", BenchOptions(rounds=1, seconds=0.02, parallel=1), stream)
    assert [row.name for row in result.rows[:2]] == names[1::-1]
    assert {row.bound for row in result.rows[2:]} == {names[1]}
