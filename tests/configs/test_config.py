"""Configurations: every key is in use, layers win in order, and nonsense is refused with the nearest name."""

import inspect
import re
import traceback
from dataclasses import fields

import pytest

import epistream as es
from epistream.configs.config import load_config
from epistream.configs.keys import NAMES, keys
from epistream.errors import EpistreamError, OptionError, SourceError

# For each key, a value that is no default, as a file may write it, and what it becomes.
VALUES = {
    "source": ("s3://bucket/set/", "s3://bucket/set/"),
    "stream.batch_size": ("7", 7),
    "stream.window.obs": ("-1:1", (-1, 0)),
    "stream.window.action": ("[0, 2, 5]", (0, 2, 5)),
    "stream.window.overrides": ("{observation.state: '-3:1'}", {"observation.state": (-3, -2, -1, 0)}),
    "stream.window.pad": ("zero", "zero"),
    "stream.window.drop_incomplete": ("true", True),
    "stream.window.must_fit": ("[-1, 2]", (-1, 2)),
    "stream.dtypes": ("{action: float64}", {"action": "float64"}),
    "stream.features": ("[action]", ["action"]),
    "stream.split": ("val", "val"),
    "stream.episodes": ("length < 100", "length < 100"),
    "stream.validation": ("true", True),
    "stream.val_fraction": ("0.25", 0.25),
    "stream.split_seed": ("3", 3),
    "stream.shuffle": ("false", False),
    "stream.seed": ("18446744073709551615", 2**64 - 1),
    "stream.remainder": ("pad", "pad"),
    "stream.image_size": ("[224, 320]", (224, 320)),
    "stream.decode": ("once", "once"),
    "stream.channels_first": ("true", True),
    "stream.squeeze": ("true", True),
    "stream.sample_format": ("act", "act"),
    "stream.delta_timestamps": ("{action: [0, 0.02]}", {"action": [0.0, 0.02]}),
    "stream.tolerance_s": ("1e-3", 0.001),
    "stream.action_delta": ("delta_first", "delta_first"),
    "stream.normalize": ("{action: min_max}", {"action": "min_max"}),
    "stream.instruction": ("random", "random"),
    "stream.on_bad": ("skip", "skip"),
    "stream.layout": ("robomimic", "robomimic"),
    "stream.allow_outside_files": (True, True),
    "stream.storage_options": ("{anon: true}", {"anon": True}),
    "order.lanes": ("3", 3),
    "order.resident_shards": ("40", 40),
    "order.reshuffle_lanes": ("true", True),
    "order.nodes": ("6", 6),
    "order.global_batch": ("2048", 2048),
    "order.resident_bytes": ("6GiB", 6 << 30),
    "order.by": ("blocks", "blocks"),
    "order.block_steps": ("16", 16),
    "order.pool_blocks": ("128", 128),
    "cache.mode": ("off", "off"),
    "cache.budget_bytes": ("1.5GiB", 3 << 29),
    "cache.directory": ("/dev/shm/mine", "/dev/shm/mine"),
    "cache.disk_directory": ("/scratch/es", "/scratch/es"),
    "cache.disk_budget_bytes": ("0", 0),
    "cache.keep": ("true", True),
    "cache.memory_fraction": ("1", 1.0),
    "cache.fill_timeout_s": ("0", 0.0),
    "cache.room_timeout_s": ("1", 1.0),
    "cache.fetch_timeout_s": ("2.5", 2.5),
    "cache.request_timeout_s": ("3", 3.0),
    "cache.attempts": ("1", 1),
    "cache.parallel_requests": ("99", 99),
    "loader.num_workers": ("0", 0),
    "loader.num_threads": ("5", 5),
    "loader.prefetch": ("9", 9),
    "loader.start_method": ("spawn", "spawn"),
    "loader.device": ("cpu", "cpu"),
    "loader.timeout_s": ("1", 1.0),
    "monitor.log_every_s": ("30", 30.0),
    "monitor.metrics_port": ("9400", 9400),
    "monitor.metrics_host": ("0.0.0.0", "0.0.0.0"),
    "pack.codec": ("raw", "raw"),
    "pack.quality": ("80", 80),
    "pack.crf": ("23", 23),
    "pack.gop": ("8", 8),
    "pack.preset": ("fast", "fast"),
    "pack.image_size": ("[128, 96]", [128, 96]),
    "pack.shard_size": ("64MiB", 64 << 20),
}
INDENT = {2: "{0}:\n  {1}: {2}\n", 3: "{0}:\n  {1}:\n    {2}: {3}\n", 1: "{0}: {1}\n"}


def written(name: str, value: str) -> str:
    parts = name.split(".")
    return INDENT[len(parts)].format(*parts, value)


def built(config: es.Config) -> dict[str, object]:
    """What a configuration hands to the things that it builds, by key."""
    stream, loader = config.stream_arguments(), config.loader_arguments(es.World())
    groups = {
        "stream.": stream,
        "stream.window.": vars(stream["window"] or es.Window()),
        "order.": vars(stream["order"]),
        "cache.": vars(stream["cache"]),
        "loader.": loader,
        "monitor.": vars(loader["monitor"]),
        "pack.": config.pack_arguments(),
    }
    found = {prefix + key: value for prefix, values in groups.items() for key, value in values.items()}
    return {**found, "source": config.source}


def test_every_key_is_tested_below():
    assert set(VALUES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_key_in_a_file_reaches_what_is_built(tmp_path, name):
    text, value = VALUES[name]
    file = tmp_path / "run.yaml"
    file.write_text(written(name, text))
    config = load_config(file)
    before, after = built(load_config()), built(config)
    assert after[name] == value
    assert before[name] != value or name == "loader.num_workers"
    assert config.origins == {name: str(file)}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "stream.storage_options"])
def test_key_written_out_reads_back_to_the_same(tmp_path, name):
    text, _ = VALUES[name]
    file = tmp_path / "run.yaml"
    file.write_text(written(name, text))
    config = load_config(file)
    for everything in (False, True):
        file.write_text(config.to_yaml(everything=everything))
        assert load_config(file).settings == config.settings


SECRET = "S3CRET"


def with_secrets():
    source = [f"http://user:{SECRET}@host/ds?sig={SECRET}", f"s3://bucket/{SECRET.lower()}"]
    return load_config(source=source, storage_options={"s3": {"key": SECRET, "more": {"n": SECRET}}})


def test_configuration_opens_with_its_secrets_and_shows_none():
    config = with_secrets()
    assert SECRET in config.source[0]
    assert config.stream_arguments()["storage_options"] == {"s3": {"key": SECRET, "more": {"n": SECRET}}}
    shown = [repr(config), str(config), repr(config.settings), str(config.settings.stream), str(config.rows())]
    for text in (*shown, str(config.values), str(config.said), config.to_yaml(), config.to_yaml(everything=True)):
        assert SECRET not in text
    assert config.values["source"] == ["http://host/ds", "s3://bucket/s3cret"]
    assert config.values["stream.storage_options"] == {"s3": {"key": "***", "more": {"n": "***"}}}


def test_written_configuration_has_no_options_that_could_be_taken_for_true_ones(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(with_secrets().to_yaml())
    again = load_config(file, storage_options={"s3": {"key": SECRET}})
    assert again.stream_arguments()["storage_options"] == {"s3": {"key": SECRET}}
    assert load_config(file).stream_arguments()["storage_options"] == {}


@pytest.mark.parametrize(
    "text",
    [
        f"stream:\n  storage_options: key={SECRET}\n",
        f"stream:\n  storage_options: [{SECRET}]\n",
        f"stream:\n  storage_option: {{key: {SECRET}}}\n",
        f"stream:\n  storage_options: {{key: '{SECRET}\n",
        f"stream:\n  storage_options: {{1: {SECRET}}}\n",
        f"stream:\n  storage_options: {{key: {SECRET}}}: x\n",
        f"source: 'http://host/x?sig={SECRET}'\nsource: x\n",
        f"source: {{url: 'http://host/x?sig={SECRET}'}}\n",
    ],
)
def test_errors_of_a_configuration_show_no_secret(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_key_names_are_the_names_of_the_arguments():
    ours = {name.rpartition(".")[2] for name in NAMES if re.fullmatch(r"stream\.\w+", name)}
    theirs = {field.name for field in fields(es.StreamOptions)} | {"storage_options"}
    # Given by other sections, by the launcher, or only from code: functions, and one number for each episode.
    assert theirs - {"order", "cache", "window", "repetitions", "transform"} == ours
    loader = set(inspect.signature(es.StreamingLoader.__init__).parameters) - {"self", "stream", "monitor", "on_device"}
    assert loader == {name.removeprefix("loader.") for name in NAMES if name.startswith("loader.")}
    for section, options, elsewhere in (
        ("cache.", es.CacheOptions, set()),
        ("order.", es.OrderOptions, {"seed", "shuffle"}),
        ("monitor.", es.MonitorOptions, set()),
        ("stream.window.", es.Window, set()),
    ):
        known = {field.name for field in fields(options)} - elsewhere
        assert known == {name.removeprefix(section) for name in NAMES if name.startswith(section)}


def test_defaults_are_those_of_the_constructors():
    stream, options = load_config().stream_arguments(), es.StreamOptions()
    for name in set(stream) - {"order", "cache", "storage_options"}:
        assert stream[name] == getattr(options, name), name
    assert stream["cache"] == es.CacheOptions()
    assert stream["order"] == es.OrderOptions()
    loader = load_config().loader_arguments(es.World())
    assert loader["monitor"] == es.MonitorOptions()
    for name, parameter in inspect.signature(es.StreamingLoader.__init__).parameters.items():
        if name in loader and name not in ("num_workers", "monitor"):
            assert loader[name] == parameter.default, name


def test_every_key_says_what_it_means():
    assert [name for name, field in keys() if not field.description] == []


def test_last_parts_of_keys_are_unique():
    last = [name.rpartition(".")[2] for name in NAMES if name != "pack.image_size"]
    assert len(set(last)) == len(last)


def test_layers_win_in_order_default_preset_file_argument(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: xlarge\nloader: {prefetch: 7}\ncache: {parallel_requests: 2}\n")
    config = load_config(file, parallel_requests=3)
    rows = {key: (value, origin) for key, value, origin, _ in config.rows()}
    assert rows["stream.batch_size"] == (1, "default")
    assert rows["order.lanes"] == (16, "preset xlarge")
    assert rows["loader.prefetch"] == (7, str(file))
    assert rows["cache.parallel_requests"] == (3, "argument")
    assert load_config(file, preset="large").settings.order.lanes == 8


def test_arguments_may_be_keys_sections_or_options_objects():
    expected = load_config(batch_size=4, action="0:8", budget_bytes=5).settings
    assert load_config(stream={"batch_size": 4, "window": {"action": range(8)}}, budget_bytes=5).settings == expected
    assert load_config(window=es.Window(action=range(8)), batch_size=4, budget_bytes=5).settings == expected
    assert load_config(
        **{"stream.batch_size": 4, "stream.window.action": "0:8"}, cache={"budget_bytes": 5}
    ).settings == (expected)


def test_window_is_left_to_the_sample_format_unless_it_is_said():
    assert load_config(sample_format="act").stream_arguments()["window"] is None
    said = load_config(sample_format="act", action="0:1").stream_arguments()["window"]
    assert said == es.Window(action=range(1))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bath_size": 3}, "bath_size: no such key. Did you mean 'stream.batch_size'?"),
        ({"cache": {"budgt": 3}}, "cache.budgt: no such key. Did you mean 'cache.budget_bytes'?"),
        ({"stream": {"windo": {"obs": 1}}}, "stream.windo: no such key. Did you mean 'stream.window'?"),
        ({"lader": {"prefetch": 1}}, "lader: no such key. Did you mean 'loader'?"),
        ({"zzz": 3}, "Known sections: cache, loader"),
        ({"cache": "shm"}, "cache: wanted a mapping with some of mode"),
        ({"batch_size": 0}, "stream.batch_size: 0, wanted greater than or equal to 1: windows per batch and rank"),
        ({"batch_size": "8"}, "stream.batch_size: '8', wanted a valid integer"),
        ({"batch_size": True}, "stream.batch_size: True"),
        ({"batch_size": 8.0}, "stream.batch_size: 8.0"),
        ({"batch_size": None}, "stream.batch_size: None"),
        ({"seed": -1}, "stream.seed: -1"),
        ({"seed": 2**64}, "stream.seed"),
        ({"obs": "a:b"}, "'a:b', wanted START:STOP"),
        ({"obs": "3:3"}, "no step offsets"),
        ({"obs": [1, 1]}, "does not ascend"),
        ({"obs": f"0:1{'0' * 400}"}, "of at most 1,000,000 steps"),
        ({"obs": f"1{'0' * 400}"}, "reaches beyond every episode, wanted step offsets within 2**48"),
        ({"obs": [0, 10**400]}, "reaches beyond every episode"),
        ({"obs": True}, "stream.window.obs"),
        ({"obs": [0.5]}, "stream.window.obs"),
        ({"overrides": {"action": [2, 1]}}, "stream.window.overrides: [2, 1] does not ascend"),
        ({"budget_bytes": "8 parsec"}, "'8 parsec', wanted a size such as 128MiB"),
        ({"budget_bytes": -1}, "cache.budget_bytes: -1"),
        ({"memory_fraction": 0}, "cache.memory_fraction: 0"),
        ({"memory_fraction": float("nan")}, "cache.memory_fraction: nan"),
        ({"timeout_s": float("inf")}, "loader.timeout_s: inf"),
        ({"num_workers": "many"}, "loader.num_workers: 'many'"),
        ({"num_workers": 2, "num_threads": 1}, "wanted one of them"),
        ({"lanes": 8, "resident_shards": 3}, "at least 2 x lanes"),
        ({"delta_timestamps": {"action": [float("inf")]}}, "wanted a finite number"),
        ({"normalize": {"action": "max"}}, "wanted 'mean_std', 'min_max' or 'quantiles'"),
        ({"pack": {"image_size": [3]}}, "pack.image_size"),
        ({"shard_size": 5}, "pack.shard_size: 5"),
        ({"preset": "huge"}, "preset: 'huge', wanted one of small, medium, large, xlarge"),
        ({"metrics_port": 0}, "monitor.metrics_port: 0"),
    ],
)
def test_nonsense_is_refused_where_it_stands(changes, text):
    with pytest.raises(OptionError) as caught:
        load_config(**changes)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("stream: {batch_siz: 4}", "stream.batch_siz: no such key. Did you mean 'stream.batch_size'?"),
        ("batch_size: 4", "batch_size: no such key. Did you mean 'stream.batch_size'?"),
        ("stream: {batch_size: 0}", "stream.batch_size: 0, wanted"),
        ("preset: huge", "preset: 'huge'"),
        ("- 1\n- 2", "list, wanted keys and values"),
        ("just words", "str, wanted keys and values"),
        ("1: 2", "wanted keys and values"),
        ("stream: [", "no YAML"),
        ("stream: {seed: 1}\nstream: {seed: 2}", "the key 'stream' is there twice"),
        ("a: !!python/object/apply:os.getcwd []", "no YAML"),
    ],
)
def test_file_that_is_wrong_is_refused_by_name(tmp_path, text, found):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        load_config(file)
    assert str(file) in str(caught.value) or found.startswith("preset")
    assert found in str(caught.value)


def test_file_that_is_not_there_is_a_source_error(tmp_path):
    for name in ("run.yaml", "x" * 5000):
        with pytest.raises(SourceError, match=r"no such file.*epistream tune"):
            load_config(tmp_path / name)


def test_file_that_is_no_text_is_an_option_error(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match=r"run\.yaml: no UTF-8 text"):
        load_config(tmp_path / "run.yaml")


def test_file_that_is_empty_says_nothing(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("# nothing yet\n")
    assert load_config(file).settings == load_config().settings


def test_preset_by_name_where_a_file_is_expected():
    assert load_config("medium").settings == load_config(preset="medium").settings
    with pytest.raises(OptionError, match="'medium' and 'small'"):
        load_config("medium", preset="small")


def test_workers_are_shared_out_among_the_ranks_of_a_node(monkeypatch):
    monkeypatch.setattr("epistream.configs.config.num_usable_cores", lambda: 12)
    config = load_config()
    assert config.loader_arguments(es.World.of(0, 4))["num_workers"] == 3
    assert config.loader_arguments(es.World.of(0, 16))["num_workers"] == 1
    assert config.loader_arguments(es.World.of(0, 1))["num_workers"] == 12
    assert load_config(num_threads=3).loader_arguments(es.World())["num_workers"] == 0


def test_stream_and_loader_from_a_configuration(aloha_shards):
    config = load_config(
        source=str(aloha_shards), batch_size=10, features="action", action="0:5", num_workers=1, log_every_s=60
    )
    with config.loader() as loader:
        assert next(iter(loader))["action"].shape == (10, 5, 14)
    stream = es.EpisodeStream.from_config(config, batch_size=3)
    assert next(iter(stream))["action"].shape == (3, 5, 14)
    with es.StreamingLoader.from_config(config, aloha_shards, es.World.of(1, 2)) as loader:
        assert loader.num_batches == 7


@pytest.mark.parametrize("config", ["run.yaml", None, {"batch_size": 3}])
def test_stream_from_what_is_no_configuration_says_how_to_get_one(config):
    with pytest.raises(OptionError, match="load_config"):
        es.EpisodeStream.from_config(config)


def test_stream_without_a_source_is_refused():
    with pytest.raises(EpistreamError, match="no source"):
        load_config().stream()


def test_pack_as_a_configuration_says(aloha_files, tmp_path):
    config = load_config(pack={"image_size": [32, 24], "codec": "raw", "shard_size": "1MiB"})
    config.pack(aloha_files[:1], tmp_path / "out")
    feature = es.open_dataset(tmp_path / "out").features["observation.images.top"]
    assert (feature.codec, feature.shape) == ("raw", (24, 32, 3))
