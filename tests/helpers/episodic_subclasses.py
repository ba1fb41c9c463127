"""Subclasses of OptimizedEpisodicDataset as users write them; here, so that spawned workers find them."""

from pathlib import Path

import epistream as es


class Told(es.OptimizedEpisodicDataset):
    """The subclass of the document: an instruction without an argument."""

    def get_language_instruction(self):
        return "complete the task"


class ToldByPath(es.OptimizedEpisodicDataset):
    def get_language_instruction(self, dataset_path):
        return f"look at {Path(dataset_path).name}"
