"""Options are said once: class, configuration and command line allow the same, by the same names and defaults."""

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import epistream as es
from epistream.commands import cli
from epistream.configs.config import load_config
from epistream.configs.keys import NAMES, nest
from epistream.configs.tune_options import TuneOptions
from epistream.errors import EpistreamError, OptionError
from epistream.loader.exporting.choice import Choice
from epistream.loader.frames.frames import FrameOptions
from epistream.loader.measuring.bench_options import BenchOptions
from epistream.loader.samples.formats.act import ActFormat
from epistream.options import check_values, options_of
from epistream.sharding.lerobot_out.options import ExportOptions
from epistream.sharding.pack.options import PackOptions
from epistream.yaml_text import dump_yaml

WEEK_S = 604_800
FLAG = ([True, False], [1, 0, "yes"])
COUNT = [0, -1, 1.0, "1", True]
WAIT = ([0, 0.5, WEEK_S], [-1, -0.001, WEEK_S + 1, float("inf"), float("nan"), "1", True])
NUMBER = ([0, 1, 8], [-1, 1025, 1.0, True])
SIZE = ([0, 1, "8GiB", "500MB", 1 << 50], [-1, "-1", 1.5, "8 parsec", "10%", True])
SIDES = [[0, 1], [1], [1, 1, 1], 224, [1.0, 1], ["1", 1], "1x1"]

# For each option of each class: values that it may have, and values that it may not, whoever says so.
TABLE: dict[type, dict[str, tuple[list[Any], list[Any]]]] = {
    es.StreamOptions: {
        "batch_size": ([1, 1 << 20], [*COUNT, (1 << 20) + 1]),
        "window": ([es.Window(), None], [16, "action"]),
        "features": ([["action"], "action", None], [3]),
        "dtypes": ([{"action": "float64"}, {"observation.*": "float32"}, None], [3, {"action": "int8"}, ["action"]]),
        "split": (["auto", "val", None], [3, True]),
        "val_fraction": ([0.1, 0.999, None], [0, 1, -0.1, True]),
        "split_seed": ([0, 1 << 63], [-1, (1 << 63) + 1, 0.0]),
        "validation": FLAG,
        "shuffle": FLAG,
        "seed": ([0, 2**64 - 1], [-1, 2**64, 1.0, "0", True]),
        "remainder": (["drop", "pad", "uneven"], ["keep", 1]),
        "image_size": ([[1, 32767], None], [*SIDES, [1, 32768]]),
        "decode": (["auto", "once", "per_read"], ["twice", True]),
        "channels_first": FLAG,
        "squeeze": FLAG,
        "sample_format": (["act", "diffusion_policy", "lerobot", "ilstudio", None], [3]),
        "delta_timestamps": ([{"action": [0, 0.02]}, None], [3, [0.1]]),
        "tolerance_s": ([0, 1e9], [-1e-9, float("inf"), float("nan"), "1", True]),
        "action_delta": (["delta_step", "delta_first", None], ["delta", 1]),
        "normalize": (["mean_std", "min_max", "quantiles", {"action": "min_max"}, None], ["zscore", 1, ["mean_std"]]),
        "instruction": (["first", "random", "all"], ["some", 1]),
        "on_bad": (["raise", "skip"], ["pass", True]),
        "layout": (["robomimic", None], [3, True]),
        "allow_outside_files": FLAG,
        "episodes": (["0:100", "length < 5", 3, [0, -1], None], ["length <", "", [], 0.5, ["a"]]),
        "repetitions": ([[1, 0], None], [3]),
        "order": ([es.OrderOptions(), None], [3, {}]),
        "cache": (["auto", "shm", "disk", "off", es.CacheOptions()], ["ram", 3]),
        "transform": ([len, None], [3]),
    },
    es.Window: {
        "obs": ([[0], [-1, 0]], [[], [0, 0], [1, 0], None]),
        "action": ([[0], [0, 1]], [[], [0, 0], [1, 0], None]),
        "overrides": ([{}, {"action": [0]}], [{"action": [1, 0]}, {"action": []}]),
        "pad": (["edge", "zero"], ["wrap", 0]),
        "drop_incomplete": FLAG,
        "must_fit": ([[0, 0], [-1, 2], None], [[1, 2], [-1], 3, [0.0, 1]]),
    },
    es.OrderOptions: {
        "shuffle": FLAG,
        "seed": ([0, 2**64 - 1], [-1, 2**64, 1.0, "0", True]),
        "lanes": ([1, 1 << 16], [*COUNT, (1 << 16) + 1, None]),
        "resident_shards": ([16, 1 << 24, None], [*COUNT, (1 << 24) + 1]),
        "reshuffle_lanes": FLAG,
        "nodes": ([1, 1 << 16, None], [*COUNT, (1 << 16) + 1]),
        "global_batch": ([1, 1 << 32, None], [*COUNT, (1 << 32) + 1]),
        "resident_bytes": SIZE,
        "by": (["windows", "blocks", None], ["episodes", 3]),
        "block_steps": ([1, 1 << 16, None], [*COUNT, (1 << 16) + 1]),
        "pool_blocks": ([16, 1 << 24, None], [*COUNT, (1 << 24) + 1]),
    },
    es.CacheOptions: {
        "mode": (["auto", "shm", "disk", "off"], ["ram", True]),
        "budget_bytes": SIZE,
        "directory": (["/dev/shm/mine", None], [3]),
        "disk_directory": (["/scratch", None], [3]),
        "disk_budget_bytes": SIZE,
        "keep": FLAG,
        "memory_fraction": ([1e-9, 0.5, 1], [0, 1.01, float("nan"), "0.5", True]),
        "fill_timeout_s": WAIT,
        "room_timeout_s": WAIT,
        "fetch_timeout_s": WAIT,
        "request_timeout_s": WAIT,
        "attempts": ([1, 1000], [*COUNT, 1001]),
        "parallel_requests": ([1, 1024], [*COUNT, 1025]),
    },
    es.MonitorOptions: {
        "log_every_s": ([0.1, WEEK_S, None], [0, -1.0, WEEK_S + 1, float("nan"), float("inf"), True]),
        "metrics_port": ([1, 65535, None], [0, 65536, 80.0, True]),
        "metrics_host": (["0.0.0.0"], [3]),
    },
    es.StreamingLoader: {
        "num_workers": NUMBER,
        "num_threads": NUMBER,
        "prefetch": ([1, 1024], [*COUNT, 1025]),
        "start_method": (["fork", "spawn", "forkserver"], ["thread"]),
        "device": (["cpu", None], []),
        "timeout_s": ([0.1, WEEK_S], [0, -1, WEEK_S + 1, float("inf"), True]),
    },
    PackOptions: {
        "layout": (["aloha", None], [3]),
        "codec": (["jpeg", "png", "raw", "h264", None], ["hevc", 1]),
        "quality": ([1, 100], [0, 101, 95.0, "95", True]),
        "crf": ([0, 51], [-1, 52, 18.0, "18", True]),
        "gop": ([1, 65_536], [*COUNT, 65_537]),
        "preset": (["ultrafast", "veryslow"], ["placebo", 5]),
        "shard_size": ([1 << 16, 1 << 39, "64KiB", "1MB"], [(1 << 16) - 1, (1 << 39) + 1, "10", "huge", 1e6, True]),
        "cameras": ([["top"], "top"], [[3]]),
        "drop": ([["*.x"], "x"], [[3]]),
        "rename": ([{"a": "b"}, [["a", "b"]]], []),
        "color_order": (["rgb", "bgr", None], ["grb"]),
        "force_color_order": FLAG,
        "image_size": ([[1, 16384], None], [*SIDES, [1, 16385]]),
        "fps": ([0.1, 50, None], [0, -1, 1e6, float("nan"), True]),
        "episodes": (["0:100", "success", [0, 3], None], ["length <", "", []]),
        "val_fraction": ([0.1, 0.999, None], [0, 1, -0.1, True]),
        "split_seed": ([0, 1 << 63], [-1, (1 << 63) + 1, 0.0]),
        "workers": ([1, 1024, None], [0, 1025, 1.0]),
        "resume": FLAG,
        "overwrite": FLAG,
        "skip_bad": FLAG,
        "allow_outside_files": FLAG,
    },
    ExportOptions: {
        "version": (["3.0", "2.1"], ["2.0", 3.0]),
        "codec": (["h264"], ["jpeg", "hevc", 1]),
        "crf": ([0, 51], [-1, 52, 18.0, "18", True]),
        "gop": ([1, 65_536], [*COUNT, 65_537]),
        "preset": (["ultrafast", "veryslow"], ["placebo", 5]),
        "data_files_size_in_mb": ([0.001, 1 << 20], [0, -1, (1 << 20) + 1, float("nan"), "1", True]),
        "video_files_size_in_mb": ([0.001, 1 << 20], [0, -1, (1 << 20) + 1, float("nan"), "1", True]),
        "chunks_size": ([1, 1_000_000], [*COUNT, 1_000_001]),
        "workers": ([1, 1024, None], [0, 1025, 1.0]),
    },
    Choice: {
        "features": ([("action",), ["observation.*"], None], [{"action": 1}]),
        "split": (["val", None], [["val"], True]),
        "episodes": (["0:100", "success", None], ["length <", ""]),
        "fps": ([0.1, 50, None], [0, -1, 1e6, float("nan"), True]),
        "task": (["", "grasp"], [["grasp"], True]),
        "pictures": (["video", "image", None], ["png", True]),
        "reencode": FLAG,
        "upright": FLAG,
    },
    FrameOptions: {
        "image_size": ([[1, 32767], None], [*SIDES, [1, 32768]]),
        "decode": (["auto", "once", "per_read"], ["twice", True]),
    },
    BenchOptions: {
        "features": ([("action",)], [None, {"action": 1}]),
        "batch_size": ([1], COUNT),
        "obs": ([range(2)], [[0, 1], 2]),
        "action": ([range(2)], [[0, 1], 2]),
        "parallel": ([1, (1, 2)], [0, (1, 0), "2", True]),
        "cache": (["auto", "shm", "disk", "off"], ["ram"]),
        "rounds": ([1], COUNT),
        "seconds": ([0.1, 5], [0, -1, float("inf"), True]),
        "once": FLAG,
        "layout": (["robomimic", "arm.yaml", None], [5, True]),
        "allow_outside_files": FLAG,
    },
    TuneOptions: {
        "ranks": ([1], COUNT),
        "nodes": ([1], COUNT),
        "target": ([0.5, 3, None], [0, -1, float("nan"), True]),
        "seconds": ([0.1, 5], [0, -1, float("inf"), True]),
    },
}
SECTIONS = {
    es.StreamOptions: "stream",
    es.Window: "stream.window",
    es.OrderOptions: "order",
    es.CacheOptions: "cache",
    es.MonitorOptions: "monitor",
    es.StreamingLoader: "loader",
    PackOptions: "pack",
}
COMMANDS = {
    PackOptions: ["pack", "in", "out"],
    BenchOptions: ["bench"],
    ExportOptions: ["export", "lerobot", "in"],
    Choice: ["export", "lerobot", "in"],
    TuneOptions: ["tune"],
    es.OrderOptions: ["plan"],
}
# What no command has, or asks otherwise: `plan` asks for the job, and declares it if told to.
NOT_OF_COMMANDS = ("shuffle", "reshuffle_lanes", "layout", "nodes", "global_batch", "upright")


def key_of(owner: type, name: str) -> str:
    return f"{SECTIONS[owner]}.{name}"


def every_option(owners: Iterable[type], have: Callable[[type, str], bool] = lambda owner, name: True) -> list[Any]:
    found = [(owner, name) for owner in owners for name in TABLE[owner] if have(owner, name)]
    return [pytest.param(owner, name, id=f"{owner.__name__}.{name}") for owner, name in found]


def each_value(owner: type, name: str) -> Iterator[tuple[Any, bool]]:
    good, bad = TABLE[owner][name]
    return chain(zip(good, repeat(True)), zip(bad, repeat(False)))


def refused(make: Any) -> bool:
    try:
        make()
    except OptionError:
        return True
    return False


def test_table_has_every_option_of_every_class():
    elsewhere = {
        es.StreamingLoader: {"stream", "monitor", "on_device"},
        # Which go together, or not.
        PackOptions: {"engine", "address", "task_index", "num_tasks", "publish"},
        ExportOptions: {"engine", "address"},
    }
    for owner, options in TABLE.items():
        assert set(options) | elsewhere.get(owner, set()) == set(options_of(owner))


@pytest.fixture(scope="module")
def stream(aloha_shards):
    return es.EpisodeStream(aloha_shards, features=["action"])


@pytest.mark.parametrize(("owner", "name"), every_option(TABLE))
def test_class_refuses_what_it_cannot_use(owner, name, stream):
    others = {"stream": stream} if owner is es.StreamingLoader else {}
    if name == "num_threads":
        others["num_workers"] = 0
    for value, fits in each_value(owner, name):
        assert refused(lambda value=value: owner(**others, **{name: value})) != fits, value
        if not fits:
            with pytest.raises(OptionError, match=rf"{name}\b.*(wanted|no step offsets|does not ascend)"):
                owner(**others, **{name: value})


@pytest.mark.parametrize(("owner", "name"), every_option(SECTIONS, lambda owner, name: key_of(owner, name) in NAMES))
def test_configuration_refuses_the_same(tmp_path, owner, name):
    file = tmp_path / "run.yaml"
    for value, fits in each_value(owner, name):
        plain = {} if isinstance(value, es.Window) else value
        file.write_text(dump_yaml(nest({key_of(owner, name): plain})))
        assert refused(lambda: load_config(file)) != fits, value


def words_for(name: str, value: Any, good: list[Any]) -> list[str] | None:
    """How a command line says a value; None if it cannot: numbers as texts, nothing at all, a flag that is not set."""
    flag = f"--{name.removesuffix('s') if name in ('cameras', 'features') else name}".replace("_", "-")
    if isinstance(value, bool):
        return [flag] if value and good is FLAG[0] else None
    if isinstance(value, float) and any(isinstance(one, str) for one in good):
        return None  # as a text it is a size
    if isinstance(value, int | float | range):
        return [f"{flag}={value.start}:{value.stop}" if isinstance(value, range) else f"{flag}={value}"]
    if isinstance(value, tuple):
        return [f"{flag}={','.join(map(str, value))}"]
    if isinstance(value, list) and name == "image_size" and "1" not in value:
        return [f"{flag}={'x'.join(map(str, value))}"]
    if isinstance(value, str) and any(isinstance(one, str) for one in good):
        return [f"{flag}={value}"]
    return None


class Enough(EpistreamError):
    """The command has read its options."""


@pytest.fixture
def stopped(monkeypatch):
    """Commands end where their work would begin; the options with which it would."""
    seen = []

    def stop(*arguments, **options):
        seen.append(arguments[1])
        raise Enough

    def pack(*places, progress, storage_options, **said):
        stop(0, PackOptions(**said))

    def export(*places, layout, allow_outside_files, progress, storage_options, **said):
        Choice(**{name: said.pop(name) for name in options_of(Choice)})
        stop(0, ExportOptions(**said))

    monkeypatch.setattr("epistream.commands.pack.pack", pack)
    monkeypatch.setattr("epistream.commands.export.export_lerobot", export)
    monkeypatch.setattr("epistream.commands.plan._fitted", stop)
    monkeypatch.setattr("epistream.loader.measuring.bench.run_bench", stop)
    monkeypatch.setattr("epistream.configs.tuner.tune", stop)
    return seen


@pytest.mark.parametrize(("owner", "name"), every_option(COMMANDS, lambda owner, name: name not in NOT_OF_COMMANDS))
def test_command_line_refuses_the_same(stopped, aloha_shards, owner, name):
    for value, fits in each_value(owner, name):
        words = words_for(name, value, TABLE[owner][name][0])
        if words is not None:
            done = CliRunner().invoke(cli, [*COMMANDS[owner], str(aloha_shards), *words])
            assert isinstance(done.exception, Enough) == fits, (value, done.output)
            assert fits or isinstance(done.exception, OptionError) or done.exit_code == 2, value


def test_commands_have_the_defaults_of_the_classes(stopped):
    for command in ("pack in out", "tune in", "bench in", "export lerobot in out"):
        assert isinstance(CliRunner().invoke(cli, command.split()).exception, Enough)
    packing, tuning, measuring, exporting = stopped
    assert dataclasses.replace(packing, workers=None) == PackOptions()
    assert tuning == TuneOptions()
    assert exporting == ExportOptions()
    assert dataclasses.replace(measuring, parallel=2) == BenchOptions()


def test_help_of_a_command_says_what_the_class_says():
    text = " ".join(CliRunner().invoke(cli, ["pack", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "--codec [jpeg|png|raw|webp|h264] Of cameras; as recorded, or jpeg, if not given. --quality" in text
    assert "--quality INTEGER Of JPEG, 1 to 100. [default: 95] --crf INTEGER" in text
    assert "--shard-size SIZE Target bytes of a shard. [64 KiB to 512 GiB] [default: 128MiB] --camera" in text
    assert "--workers INTEGER Tasks at once. [1 to 1024] [default: (one a core)] --engine" in text


@pytest.mark.parametrize("owner", TABLE)
def test_defaults_are_what_the_class_allows(owner):
    defaults = {name: option.default for name, option in options_of(owner).items()}
    assert check_values(owner, {name: one for name, one in defaults.items() if one is not inspect.Parameter.empty})


@pytest.mark.parametrize("owner", TABLE)
def test_every_option_has_a_sentence(owner):
    assert [name for name, option in options_of(owner).items() if not option.sentence] == []


@pytest.mark.parametrize(
    "options",
    [
        es.StreamOptions(batch_size=4, image_size=(2, 3), cache=es.CacheOptions(mode="off"), sample_format=ActFormat()),
        es.OrderOptions(False, 3, 4),
        es.CacheOptions("shm", "8GiB"),
        es.MonitorOptions(1.5),
        PackOptions(cameras=("top",), rename=(("a", "b"),)),
    ],
)
def test_options_are_frozen_values(options):
    assert options == copy.deepcopy(options) == pickle.loads(pickle.dumps(options)) == dataclasses.replace(options)
    assert hash(options) == hash(dataclasses.replace(options))
    assert repr(options).startswith(f"{type(options).__name__}(")
    name = dataclasses.fields(options)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(options, name, None)
    with pytest.raises(OptionError):
        dataclasses.replace(options, **{next(iter(TABLE[type(options)])): object()})


def test_options_are_shown_as_they_were_given():
    assert repr(es.CacheOptions("shm", "8GiB")).startswith(
        "CacheOptions(mode='shm', budget_bytes='8GiB', directory=None"
    )
    assert repr(es.OrderOptions()) == (
        "OrderOptions(shuffle=True, seed=0, lanes=8, resident_shards=None, reshuffle_lanes=False, nodes=None, "
        "global_batch=None, resident_bytes=8589934592, by=None, block_steps=None, pool_blocks=None)"
    )
    assert "shard_size='128MiB', cameras=('top',)" in repr(PackOptions(cameras=["top"]))


def test_signature_says_ranges():
    signature = str(inspect.signature(es.CacheOptions))
    assert "Annotated[int, at least 1, at most 1000] = 6" in signature


def test_numbers_of_numpy_are_pythons():
    order = es.OrderOptions(seed=np.uint64(2**64 - 1), lanes=np.int32(3), shuffle=np.bool_(True))
    assert (type(order.seed), type(order.lanes), type(order.shuffle)) == (int, int, bool)
    assert order == es.OrderOptions(seed=2**64 - 1, lanes=3)
    assert es.CacheOptions(memory_fraction=np.float32(0.25)).memory_fraction == 0.25
    window = es.Window(must_fit=(np.int64(-1), np.int64(2)))
    assert window.must_fit == es.Window(must_fit=np.arange(-1, 5, 3)).must_fit == (-1, 2)
    assert es.StreamOptions(image_size=[np.int64(2), 3]).image_size == (2, 3)
    assert [type(step) for step in window.must_fit] == [int, int]


def test_loader_takes_numbers_of_numpy(stream):
    with es.StreamingLoader(stream, num_workers=np.int64(0), num_threads=np.int32(1), prefetch=np.int8(2)) as loader:
        assert len(next(iter(loader))["step_index"]) == 1


def test_configuration_takes_tuples_and_sets_from_python_and_windows_that_hold_some():
    stream = {"image_size": (2, 3), "delta_timestamps": {"action": (0, 0.1)}}
    config = load_config(source=("a", "b"), features={"action"}, must_fit=(-1, 2), stream=stream)
    assert config.source == ["a", "b"]
    arguments = config.stream_arguments()
    assert (arguments["features"], arguments["image_size"]) == (["action"], (2, 3))
    assert arguments["delta_timestamps"] == {"action": [0, 0.1]}
    assert arguments["window"].must_fit == (-1, 2)
    assert load_config(window=es.Window(must_fit=(-1, 2))).stream_arguments()["window"].must_fit == (-1, 2)
    for wrong in ({"features": (3,)}, {"image_size": (2.0, 3)}, {"image_size": (2, 3, 4)}, {"source": {"a": 1}}):
        with pytest.raises(OptionError, match=f"argument: .*{next(iter(wrong))}: .*: "):
            load_config(**wrong)


def test_configuration_crosses_process_borders():
    config = load_config("large", batch_size=3, window=es.Window(must_fit=(0, 3)), cache={"budget_bytes": "8GiB"})
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_message_says_what_is_wanted_of_what_was_meant():
    with pytest.raises(OptionError, match=r"bench parallel: \(1, 0\), wanted at least 1\. The default is 2\."):
        BenchOptions(parallel=(1, 0))
    with pytest.raises(OptionError, match="lanes"):
        es.OrderOptions(lanes=np.int64(0))


def test_sizes_of_the_cache_are_told_as_text():
    options = es.CacheOptions(budget_bytes="8GiB", disk_budget_bytes="500MB")
    assert (options.budget("shm"), options.budget("disk")) == (8 << 30, 500_000_000)
    assert es.CacheOptions(budget_bytes=np.int64(5)).budget("shm") == 5
    assert es.CacheOptions().budget("shm") is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: es.CacheOptions(attempts=0), "cache attempts: 0, wanted at least 1. The default is 6."),
        (
            lambda: es.MonitorOptions(metrics_port=0),
            "metrics_port: 0, wanted 1 to 65535. Leave it out for the default.",
        ),
        (
            lambda: es.StreamOptions(batch_size=4.0),
            "batch_size: 4.0, wanted an integer of at least 1. The default is 1.",
        ),
        (
            lambda: es.StreamOptions(batch_size=1 << 21),
            "batch_size: 2097152, wanted at most 1048576. The default is 1.",
        ),
        (lambda: es.StreamOptions(order=3), "order: 3, wanted an OrderOptions. Leave it out for the default."),
        (lambda: es.StreamOptions(shuffle=1), "shuffle: 1, wanted True or False. The default is True."),
        (
            lambda: es.StreamOptions(action_delta=3),
            "action_delta: 3, wanted one of delta_step, delta_first, or an ActionDelta. Leave it out for the default.",
        ),
        (
            lambda: es.CacheOptions(memory_fraction=2),
            "cache memory_fraction: 2, wanted above 0 and at most 1. The default is 0.5.",
        ),
        (
            lambda: FrameOptions(image_size=3),
            "image_size: 3, wanted (height, width) in pixels, for example (240, 320). Leave it out for the default.",
        ),
        (
            lambda: PackOptions(shard_size="10"),
            "shard_size: '10', wanted 64 KiB to 512 GiB. The default is '128MiB'.",
        ),
    ],
)
def test_messages_say_where_what_was_found_what_is_wanted_and_what_works(make, message):
    with pytest.raises(OptionError) as caught:
        make()
    assert str(caught.value) == message


def test_option_classes_do_not_import_pydantic():
    # It takes 12 MB and 50 ms of processes that have nothing to validate but these.
    modules = ("epistream.cache.options", "epistream.loader.order.plan", "epistream.sharding.pack.options")
    code = f"import sys, {', '.join(modules)}; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"engine": "slurm"}, "engine: 'slurm', wanted one of local, ray"),
        ({"address": "auto"}, r"address: 'auto', which is of Ray's cluster. Give engine ray"),
        ({"engine": "ray", "address": ""}, "address: empty, wanted auto"),
        ({"task_index": 0}, "task_index: 0, num_tasks: None, wanted both"),
        ({"task_index": 5, "num_tasks": 5}, "task_index: 5, wanted 0 to 4, of 5 tasks"),
        ({"publish": True, "resume": True}, "publish: with a task, resume or overwrite, wanted alone"),
    ],
)
def test_options_of_engines_and_arrays_that_do_not_go_together_are_refused(said, message):
    with pytest.raises(OptionError, match=message):
        PackOptions(**said)
