"""A task of an export that is begun again, beside what another attempt of it left."""

from pathlib import Path

import numpy as np

from epistream.loader.exporting.lerobot import export_lerobot
from epistream.sharding.lerobot_out import export, files
from epistream.sharding.tasks.pulse import Counters, Pulse


def test_export_task_that_is_run_twice_gives_the_files_of_one_run(aloha_shards, tmp_path, monkeypatch):
    def twice(task, pulse):
        files.write_files(task, pulse)
        files.write_files(task, Pulse(np.zeros((2, Counters.NUM_COLUMNS), np.int64), 1, pulse.kept))

    options = {"pictures": "image", "version": "2.1", "workers": 1}
    export_lerobot(aloha_shards, tmp_path / "once", **options)
    monkeypatch.setattr(export, "write_files", twice)
    export_lerobot(aloha_shards, tmp_path / "twice", **options)

    def contents(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}

    assert contents(tmp_path / "twice") == contents(tmp_path / "once")
    assert len(contents(tmp_path / "once")) > 4
