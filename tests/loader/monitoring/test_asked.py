"""Lines that were asked for by log_every_s are seen once, wherever logging was configured or not."""

import contextlib
import logging
import socket

import pytest

import epistream as es
from epistream.loader.monitoring.asked import tell

NAME = "epistream.loader.monitor"


@contextlib.contextmanager
def unconfigured():
    """Logging as a program finds it: no handlers, the root at WARNING. pytest adds its own where a test begins."""
    loggers = [logging.getLogger(name) for name in ("epistream", "epistream.loader", NAME)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.root, "handlers", [])
        patch.setattr(logging.root, "level", logging.WARNING)
        for logger in loggers:
            for attribute, value in (("handlers", []), ("level", 0), ("propagate", True), ("disabled", False)):
                patch.setattr(logger, attribute, value)
        logging.root.manager._clear_cache()
        yield
    logging.root.manager._clear_cache()


class Kept(logging.Handler):
    def __init__(self, level=0):
        super().__init__(level)
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.levelname} {record.name} {record.getMessage()}")


@pytest.mark.parametrize("way", [{"num_workers": 2}, {"num_workers": 0}, {"num_workers": 0, "num_threads": 0}])
@unconfigured()
def test_lines_are_on_standard_error_where_nobody_configured_logging(aloha_shards, capfd, way):
    stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"])
    monitor = es.MonitorOptions(log_every_s=1e-9)
    with es.StreamingLoader(stream, monitor=monitor, **way) as loader:
        assert sum(len(batch["action"]) for batch in loader) == 140
    shown = capfd.readouterr()
    lines = [line for line in shown.err.splitlines() if "windows/s" in line]
    assert len(lines) == 7  # one for each batch, none by workers
    assert all(f" {NAME}: rank 0: " in line for line in lines)
    assert shown.out == ""


@pytest.mark.parametrize("where", ["", "epistream", NAME])
@pytest.mark.parametrize("level", [logging.NOTSET, logging.INFO])
@unconfigured()
def test_handlers_of_the_users_get_each_line_once_and_nobody_else_does(capfd, where, level):
    kept = Kept(level)
    logging.getLogger(where).addHandler(kept)
    tell(logging.getLogger(NAME), "rank 0: 100 % fast")
    assert kept.lines == [f"INFO {NAME} rank 0: 100 % fast"]
    assert capfd.readouterr() == ("", "")


@unconfigured()
def test_basic_config_of_a_program_shows_lines_by_its_own_handler(capfd):
    logging.basicConfig(format="mine %(message)s", force=True)
    tell(logging.getLogger(NAME), "rank 0")
    assert capfd.readouterr() == ("", "mine rank 0\n")


@unconfigured()
def test_handler_that_wants_warnings_only_gets_none(capfd):
    kept = Kept(logging.WARNING)
    logging.root.addHandler(kept)
    tell(logging.getLogger(NAME), "rank 0")
    assert kept.lines == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["epistream", "epistream.loader", NAME])
@unconfigured()
def test_level_that_somebody_gave_to_our_loggers_holds(capfd, name):
    logging.getLogger(name).setLevel(logging.WARNING)
    tell(logging.getLogger(NAME), "rank 0")
    assert capfd.readouterr() == ("", "")
    logging.getLogger(NAME).setLevel(logging.INFO)
    tell(logging.getLogger(NAME), "rank 0")
    assert capfd.readouterr().err.endswith(f" {NAME}: rank 0\n")


@unconfigured()
def test_logging_that_is_switched_off_stays_off(capfd):
    logging.disable(logging.CRITICAL)
    try:
        tell(logging.getLogger(NAME), "rank 0")
    finally:
        logging.disable(logging.NOTSET)
    assert capfd.readouterr() == ("", "")


@unconfigured()
def test_handler_that_does_nothing_takes_no_line(capfd):
    logging.getLogger("epistream").addHandler(logging.NullHandler())
    tell(logging.getLogger(NAME), "rank 0")
    assert capfd.readouterr().err.endswith(f" {NAME}: rank 0\n")
    logging.getLogger("epistream").propagate = False
    logging.root.addHandler(kept := Kept())
    tell(logging.getLogger(NAME), "rank 0")
    assert (kept.lines, "rank 0" in capfd.readouterr().err) == ([], True)


@unconfigured()
def test_address_of_metrics_and_reports_of_episodic_datasets_are_told_likewise(aloha_files, aloha_shards, capfd):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stream = es.EpisodeStream(aloha_shards, batch_size=70, features=["action"])
    with es.StreamingLoader(stream, num_workers=0, monitor=es.MonitorOptions(metrics_port=port)) as loader:
        next(iter(loader))
    assert f"Metrics at http://127.0.0.1:{port}/metrics" in capfd.readouterr().err
    dataset = es.OptimizedEpisodicDataset(list(map(str, aloha_files)), ["top"], enable_monitoring=True)
    dataset._num_samples = 999
    dataset[0]
    assert "1,000 samples in" in capfd.readouterr().err
