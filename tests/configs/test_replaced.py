"""Configurations of the replaced system: a whole file is read, a single key is answered with where it went."""

import logging
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from epistream.commands import cli
from epistream.configs.config import load_config
from epistream.configs.keys import NAMES
from epistream.configs.replaced import _KEYS
from epistream.errors import OptionError

# As the documentation of that system shows its sections.
DOCUMENTED = """
memory_mapping:
  enabled: true
  cache_size: 100
shared_memory:
  enabled: true
  preload_critical_data: true
dataloader:
  num_workers: 4
  pin_memory: true
  persistent_workers: true
  prefetch_factor: 2
"""
# With every section and value of the file that was published.
PUBLISHED = """
optimization:
  enabled: true
  memory_mapping: {enabled: true, cache_size: 100}
  shared_memory: {enabled: true, preload_critical_data: true}
  loading_strategy:
    full_preload: false
    preload_priority: ["episode_lengths", "language_instructions", "metadata"]
  cache_strategy: {lru_cache_size: 128, compress_images: false, cleanup_frequency: 100}
dataloader: {num_workers: 4, pin_memory: true, persistent_workers: true, prefetch_factor: 2, drop_last: true}
distributed: {use_distributed_sampler: true, backend: "nccl"}
memory_management: {memory_limit: 16.0, monitor_interval: 30, auto_gc: true, gc_interval: 50}
monitoring:
  enabled: true
  metrics: ["memory_usage", "loading_time", "cache_hit_rate", "io_wait_time"]
  log_level: "INFO"
  save_report: true
  report_path: "./performance_report.json"
presets:
  small:
    optimization:
      memory_mapping: {cache_size: 50}
      shared_memory: {preload_critical_data: true}
      loading_strategy: {full_preload: true}
    memory_management: {memory_limit: 4.0}
  medium:
    optimization:
      memory_mapping: {cache_size: 100}
      shared_memory: {preload_critical_data: true}
      loading_strategy: {full_preload: false}
    memory_management: {memory_limit: 8.0}
  large:
    optimization:
      memory_mapping: {cache_size: 200}
      shared_memory: {preload_critical_data: true}
      loading_strategy: {full_preload: false}
    dataloader: {num_workers: 8, prefetch_factor: 4}
    memory_management: {memory_limit: 32.0}
  xlarge:
    optimization:
      memory_mapping: {cache_size: 50}
      shared_memory: {preload_critical_data: true}
      loading_strategy: {full_preload: false}
    cache_strategy: {lru_cache_size: 64, compress_images: true}
    dataloader: {num_workers: 12, prefetch_factor: 2}
    memory_management: {memory_limit: 64.0, gc_interval: 25}
"""


@pytest.fixture
def old(tmp_path):
    """Writes such a file."""

    def write(text: str) -> Path:
        file = tmp_path / "optimization_config.yaml"
        file.write_text(text)
        return file

    return write


def refusal(file: Path, **changes: object) -> str:
    with pytest.raises(OptionError) as caught:
        load_config(file, **changes)
    return str(caught.value)


def test_documented_file_is_read_with_the_keys_of_today(old):
    assert load_config(old(DOCUMENTED)).said == {
        "cache.mode": "auto",
        "loader.num_workers": 4,
        "loader.prefetch": 2,
    }


def test_published_file_is_read_with_the_keys_of_today(old):
    assert load_config(old(PUBLISHED)).said == {
        "stream.remainder": "drop",
        "cache.mode": "auto",
        "cache.budget_bytes": "16GiB",
        "loader.num_workers": 4,
        "loader.prefetch": 2,
        "monitor.log_every_s": 30.0,
    }


def test_preset_takes_ours_and_then_the_files_own(old):
    values = load_config(old(PUBLISHED), preset="xlarge").values
    assert values["order.lanes"] == 16  # of our preset of this name
    assert (values["loader.num_workers"], values["loader.prefetch"]) == (12, 2)
    assert (values["cache.budget_bytes"], values["stream.decode"]) == ("64GiB", "per_read")
    large = load_config(old("preset: large\n" + PUBLISHED)).values
    assert (large["loader.num_workers"], large["loader.prefetch"]) == (8, 4)


def test_presets_may_stand_by_themselves_and_name_keys_by_their_last_part(old):
    file = old("small: {num_workers: 1, cache_size: 50}\nlarge: {num_workers: 9, prefetch_factor: 3}\n")
    assert load_config(file).said == {}
    assert load_config(file, preset="large").settings.loader.num_workers == 9
    assert load_config(file, preset="large").settings.loader.prefetch == 3


def test_arguments_change_what_an_old_file_says(old):
    settings = load_config(old(DOCUMENTED), num_workers=0, batch_size=9).settings
    assert (settings.loader.num_workers, settings.loader.prefetch, settings.stream.batch_size) == (0, 2, 9)


def test_every_key_of_the_file_is_answered_once_in_one_record(old, caplog):
    with caplog.at_level(logging.WARNING, "epistream"):
        load_config(file := old(PUBLISHED))
    assert [record.name for record in caplog.records] == ["epistream.configs.replaced"]
    said = caplog.messages[0].splitlines()
    assert said[0].startswith(f"{file}: keys of the system that this one replaces")
    assert "  dataloader.num_workers: 4 -> loader.num_workers: 4" in said
    assert "  memory_management.memory_limit: 16.0 -> cache.budget_bytes: '16GiB'" in said
    assert (
        "  dataloader.pin_memory: True -> nothing to set: loader.device moves batches ahead, from page-locked memory"
    ) in said
    assert said[-1] == f"Written anew: epistream config show {file} --yaml"
    # One line for each of the 26 keys outside of its presets.
    assert len(said) == 2 + 26


def test_origin_of_a_value_names_the_file_and_its_old_key(old):
    file = old(PUBLISHED)
    assert load_config(file).origins["loader.prefetch"] == f"{file}: dataloader.prefetch_factor"
    assert load_config(file).origins["cache.mode"] == f"{file}: optimization.shared_memory.enabled"


def test_old_file_streams(old, aloha_shards):
    config = load_config(old(DOCUMENTED), source=str(aloha_shards), num_workers=1, features=["action"], batch_size=20)
    with config.loader() as loader:
        assert [tuple(batch["action"].shape) for batch in loader] == [(20, 1, 14)] * 7


def test_command_shows_an_old_file_and_writes_it_anew(old, tmp_path):
    shown = CliRunner().invoke(cli, ["config", "show", str(old(PUBLISHED)), "--yaml"], catch_exceptions=False)
    assert shown.exit_code == 0
    new = tmp_path / "run.yaml"
    new.write_text(shown.stdout)
    assert load_config(new).settings == load_config(old(PUBLISHED)).settings
    assert yaml.safe_load(shown.stdout)["loader"]["num_workers"] == 4


def test_what_the_optimizer_returns_is_read_when_it_was_saved(old):
    saved = {
        "optimization": {"memory_map_cache_size": 2, "preload_critical_data": True},
        "memory_mapping": {"enabled": True, "cache_size": 2},
        "shared_memory": {"enabled": True, "preload_critical_data": True},
        "dataloader": {"num_workers": 2, "pin_memory": False, "persistent_workers": True, "prefetch_factor": 2},
        "epistream": load_config(batch_size=3, num_workers=0, num_threads=2).settings.model_dump(mode="json"),
    }
    settings = load_config(old(yaml.safe_dump(saved))).settings
    assert settings == load_config(batch_size=3, num_workers=0, num_threads=2).settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # What is no multiple of a MiB is written as a number of bytes.
        ("shared_memory: {enabled: false}", {"cache.mode": "off"}),
        ("shared_memory: off", {"cache.mode": "off"}),  # a boolean in YAML 1.1, by which it was read
        ("optimization: {use_shared_memory: no, memory_map_cache_size: 50}", {"cache.mode": "off"}),
        ("memory_mapping: {enabled: false}", {}),
        ("memory_mapping: {cache_size: 2GB}", {"cache.budget_bytes": 2_000_000_000}),
        ("optimization: {cache_strategy: {lru_cache_size: 512MiB}}", {"cache.budget_bytes": "512MiB"}),
        ("memory_management: {memory_limit: 2GB}", {"cache.budget_bytes": 2_000_000_000}),
        ("memory_management: {memory_limit: '16'}", {"cache.budget_bytes": "16GiB"}),
        ("memory_management: {memory_limit: 0.5}", {"cache.budget_bytes": "512MiB"}),
        ("memory_management: {memory_limit: 1e3}", {"cache.budget_bytes": "1000GiB"}),
        ("cache_strategy: {compress_images: yes}", {"stream.decode": "per_read"}),
        (
            "dataloader: {batch_size: 8, shuffle: false, seed: 5}",
            {"stream.batch_size": 8, "stream.shuffle": False, "stream.seed": 5},
        ),
        ("dataloader: {drop_last: false}", {"stream.remainder": "pad"}),
        ("dataloader: {timeout: 0, multiprocessing_context: spawn}", {"loader.start_method": "spawn"}),
        ("dataloader: {timeout: 30}", {"loader.timeout_s": 30.0}),
        ("dataloader: {num_workers: 0, prefetch_factor: null}", {"loader.num_workers": 0}),
        ("dataloader:\nmonitoring:\n  enabled:\npresets:\n", {}),
        ("monitoring: {enabled: false}\nmemory_management: {monitor_interval: 30}", {}),
        ("monitoring: {enable_monitoring: true}", {}),
        ("monitoring: true", {}),
        ("use_shared_memory: true\nshared_memory: {enabled: true}", {"cache.mode": "auto"}),
    ],
)
def test_old_values_become(old, text, said):
    assert load_config(old(text)).said == said


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "dataloader: {num_worker: 4}",
            "dataloader.num_worker: no such key. Did you mean 'dataloader.num_workers'?",
        ),
        ("dataloadr: {num_workers: 4}\nmonitoring: true", "dataloadr: no such key. Did you mean 'dataloader."),
        ("dataloadr:\nmonitoring: true", "dataloadr: no such key"),
        ("optimization: {memory_maping: {enabled: true}}", "optimization.memory_maping: no such key"),
        ("presets: {large: {dataloader: {prefetch_facto: 1}}}", "presets.large.dataloader.prefetch_facto: no such key"),
        ("presets: {huge: {}}", "presets: {'huge': {}}, wanted keys and values of small, medium, large, xlarge."),
        ("presets: [small]", "presets: ['small'], wanted keys and values of small"),
        ("presets: {small: 3}", "presets.small: 3, wanted keys and values."),
        ("dataloader: 4", "dataloader: 4, wanted a mapping with some of batch_size, shuffle, seed"),
        ("optimization: {cache_strategy: []}", "optimization.cache_strategy: [], wanted a mapping with some of"),
        ("memory_mapping: {enabled: maybe}", "memory_mapping.enabled: 'maybe', wanted true or false."),
        ("memory_mapping: {cache_size: 2 parsec}", "memory_mapping.cache_size: '2 parsec', wanted a number of entries"),
        ("memory_mapping: {cache_size: -1}", "memory_mapping.cache_size: -1, wanted a number of entries"),
        ("memory_mapping: {cache_size: true}", "memory_mapping.cache_size: True, wanted a number of entries"),
        ("memory_management: {memory_limit: -1}", "memory_management.memory_limit: -1, wanted a number of GB above 0"),
        ("memory_management: {memory_limit: .inf}", "memory_management.memory_limit: inf, wanted a number of GB"),
        ("memory_management: {memory_limit: 1e308}", "memory_management.memory_limit: 1e+308, wanted a number of GB"),
        ("memory_management: {memory_limit: lots}", "memory_management.memory_limit: 'lots', wanted a number of GB"),
        ("memory_management: {memory_limit: [1]}", "memory_management.memory_limit: [1], wanted a number of GB"),
        ("dataloader: {num_workers: '4'}", "dataloader.num_workers: loader.num_workers: '4', wanted a valid integer"),
        ("dataloader: {num_workers: -1}", "dataloader.num_workers: loader.num_workers: -1, wanted"),
        ("dataloader: {prefetch_factor: 0}", "dataloader.prefetch_factor: loader.prefetch: 0, wanted"),
        ("dataloader: {timeout: false}", "dataloader.timeout: loader.timeout_s: False, wanted"),
        ("optimization: {enabled: false}", "optimization.enabled: False, but the class without optimisation"),
        (
            "distributed: {use_distributed_sampler: false}",
            "distributed.use_distributed_sampler: False, but every rank would get every window",
        ),
        (
            "shared_memory: {enabled: true}\nuse_shared_memory: false",
            "use_shared_memory: False, but shared_memory.enabled says True. Leave one of them.",
        ),
        (
            "memory_mapping: {cache_size: 2GB}\nmemory_management: {memory_limit: 16}",
            "memory_limit: 16, which is cache.budget_bytes now, but so is memory_mapping.cache_size, with another",
        ),
        ("epistream: 3\nmonitoring: true", "epistream: no such key"),
        (
            "dataloader: &all {num_workers: 2, again: *all}",
            "no YAML (*all stands within what it names, line 1, column 42)",
        ),
        ("monitoring: &all {enabled: *all}", "no YAML (*all stands within what it names, line 1, column 28)"),
    ],
)
def test_old_file_that_cannot_be_meant_is_refused_by_the_old_name(old, text, error):
    file = old(text)
    said = refusal(file)
    assert said.startswith(f"{file}: ")
    assert error in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "stream: {batch_size: 4}\ndataloader: {num_workers: 4, pin_memory: true}",
            "dataloader: of the system that this one replaces: dataloader.num_workers is loader.num_workers now; "
            "dataloader.pin_memory needs no key any more: loader.device moves batches ahead, from page-locked memory.",
        ),
        ("loader: {prefetch_factor: 2}", "loader.prefetch_factor is loader.prefetch now."),
        ("loader: {persistent_workers: true}", "loader.persistent_workers needs no key any more: workers stay"),
        ("stream: {drop_last: true}", "stream.drop_last is stream.remainder now."),
        ("cache: {cache_size: 100}", "cache.cache_size is cache.budget_bytes now (bytes for all processes"),
        ("source: x\nshared_memory: {enabled: true}", "shared_memory.enabled is cache.mode now."),
        ("source: x\nshared_memory: true", "shared_memory is cache.mode now."),
        ("source: x\nmemory_mapping: {enabled: true}", "memory_mapping.enabled needs no key any more: files on local"),
        ("source: x\nmonitoring: {enabled: true}", "monitoring.enabled needs no key any more: loader.print_perf"),
        ("source: x\nuse_shared_memory: true", "use_shared_memory is cache.mode now."),
        # A key of today in the wrong place, not one of the old system.
        ("stream: {num_workers: 4}", "stream.num_workers: no such key. Did you mean 'loader.num_workers'?"),
        ("source: x\npresets: {}", "presets: no such key. Did you mean 'preset'?"),
    ],
)
def test_single_old_key_in_a_file_of_today_is_answered_with_the_new_one(old, text, error):
    assert error in refusal(old(text))


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ("dataloader.num_workers=4", "loader.num_workers"),
        ("prefetch_factor=4", "loader.prefetch"),
        ("memory_mapping.cache_size=4", "cache.budget_bytes"),
        ("optimization.shared_memory.enabled=true", "cache.mode"),
        ("memory_limit=8", "cache.budget_bytes"),
        ("pin_memory=true", "loader.device"),
    ],
)
def test_single_old_key_in_a_command_is_answered_with_the_new_one(change, new):
    with pytest.raises(OptionError, match=f"of the system that this one replaces.*{new}"):
        CliRunner().invoke(cli, ["config", "show", "--set", change], catch_exceptions=False)


def test_single_old_key_among_arguments_is_answered_with_the_new_one():
    with pytest.raises(OptionError, match=r"dataloader\.prefetch_factor is loader\.prefetch now"):
        load_config(dataloader={"prefetch_factor": 4})
    with pytest.raises(OptionError, match=r"pin_memory needs no key any more"):
        load_config(pin_memory=True)


def test_keys_that_old_ones_lead_to_are_there():
    assert {row.new for row in _KEYS.values() if row.new} <= set(NAMES)
    assert [name for name, row in _KEYS.items() if not row.new and not row.why] == []
