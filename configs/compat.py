"""The three calls around `OptimizedEpisodicDataset`: a loader in one call, and the tuner in the old words."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.utils.data import DataLoader

from epistream.configs.config import load_config
from epistream.configs.tune_options import TuneOptions
from epistream.configs.tuned_yaml import tuned_yaml
from epistream.configs.tuner import Tuning, tune
from epistream.loader.episodic.dataset import OptimizedEpisodicDataset, Sample
from epistream.loader.episodic.episode_table import AnyPath, find_paths
from epistream.loader.episodic.options import camera_features
from epistream.loader.episodic.sampler import RankSampler
from epistream.loader.order.window import Window
from epistream.loader.order.world import World
from epistream.sharding.dataset import open_dataset

# Files that one batch may hold open at most, in the old words the size of the memory map's cache.
_MAX_OPEN_FILES = 100


def create_optimized_dataloader(
    dataset_paths: AnyPath | Sequence[AnyPath],
    camera_names: Sequence[str],
    batch_size: int = 8,
    num_workers: int = 4,
    use_distributed: bool = False,
    *,
    dataset_class: type[OptimizedEpisodicDataset] = OptimizedEpisodicDataset,
    loader_options: Mapping[str, Any] | None = None,
    **dataset_options: Any,
) -> tuple[DataLoader[Sample], OptimizedEpisodicDataset]:
    """A stock DataLoader over an `OptimizedEpisodicDataset`, and the dataset.

    Its sampler follows ``loader.sampler.set_epoch(epoch)``, with and without `use_distributed`.

    Args:
        dataset_paths: HDF5 files, folders of them, or shard folders.
        camera_names: as in the files.
        batch_size: windows per batch and rank.
        num_workers: worker processes of this rank.
        use_distributed: divide the windows over the ranks of the process group, or those that the launcher tells of,
            as they are at each iteration; False gives every rank all.
        dataset_class: a subclass with hooks of its own.
        loader_options: other arguments of ``torch.utils.data.DataLoader``, and ``shuffle``, ``seed`` and ``drop_last``
            of the sampler.
        dataset_options: other arguments of the dataset.

    Raises:
        OptionError, SourceError, LayoutError, FormatError: as the dataset's constructor.
    """
    dataset = dataset_class(dataset_paths, camera_names, **dataset_options)
    options: dict[str, Any] = {
        "pin_memory": torch.cuda.is_available(),
        "persistent_workers": num_workers > 0,
        "prefetch_factor": 2 if num_workers else None,
        **(loader_options or {}),
    }
    sampler = RankSampler(
        dataset,
        None if use_distributed else World(),
        shuffle=options.pop("shuffle", True),
        seed=options.pop("seed", 0),
        drop_last=options.get("drop_last", False),
    )
    options.setdefault("sampler", sampler)
    return DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, **options), dataset


def auto_optimize_dataset(
    dataset_paths: AnyPath | Sequence[AnyPath],
    camera_names: Sequence[str],
    batch_size: int = 8,
    *,
    num_ranks: int = 1,
    seconds: float = 0.5,
    verbose: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure the data on this machine and choose how to read it: `DatasetOptimizer` in one call.

    Args:
        dataset_paths: HDF5 files, folders of them, or shard folders.
        camera_names: as in the files.
        batch_size: windows per batch and rank.
        num_ranks: training processes on this node.
        seconds: length of each measurement; there are a few.
        verbose: write the report to standard output.

    Returns:
        The configuration, whose ``optimization`` are arguments of `OptimizedEpisodicDataset` and whose ``dataloader``
        those of a DataLoader; and the analysis.
    """
    optimizer = DatasetOptimizer(dataset_paths, camera_names, batch_size, num_ranks=num_ranks, seconds=seconds)
    config = optimizer.optimize()
    if verbose:
        optimizer.print_report()
    return config, optimizer.analysis()


class DatasetOptimizer:
    """Looks at the system and the data, measures, and chooses; every choice with its reason.

    What it chooses is what ``epistream tune`` chooses: `tuning` holds it in full, and ``tuning.config`` makes streams.

    Args:
        dataset_paths: HDF5 files, folders of them, or shard folders.
        camera_names: as in the files; a camera that is not there is an error.
        batch_size: windows per batch and rank.
        chunk_size: actions of a window.
        num_ranks: training processes on this node.
        seconds: length of each measurement.

    Raises:
        OptionError, SourceError, LayoutError, FormatError: paths or cameras that cannot be read.
    """

    def __init__(
        self,
        dataset_paths: AnyPath | Sequence[AnyPath],
        camera_names: Sequence[str],
        batch_size: int = 8,
        *,
        chunk_size: int = 16,
        num_ranks: int = 1,
        seconds: float = 0.5,
    ) -> None:
        self._paths = find_paths(dataset_paths)
        self._dataset = open_dataset(self._paths)
        self._cameras = camera_features(self._dataset.features, camera_names)
        arrays = [name for name, feature in self._dataset.features.items() if feature.kind == "array"]
        self._base = load_config(
            batch_size=batch_size,
            features=[*self._cameras, *arrays],
            remainder="pad",
            window=Window(action=range(chunk_size)),
        )
        self._options = TuneOptions(ranks=num_ranks, seconds=seconds)
        self._tuning: Tuning | None = None

    @property
    def tuning(self) -> Tuning:
        """What was measured and chosen; measured at the first use."""
        if self._tuning is None:
            source = self._paths[0] if len(self._paths) == 1 else self._paths
            self._tuning = tune(source, self._options, self._base)
        return self._tuning

    def analyze_system(self) -> dict[str, Any]:
        """Cores, memory, /dev/shm and GPUs of this machine."""
        return asdict(self.tuning.machine)

    def analyze_dataset(self) -> dict[str, Any]:
        """Sizes of the data, as packed and decoded, and the measured rates."""
        dataset = self._dataset
        sizes = {
            "num_episodes": dataset.num_episodes,
            "num_steps": dataset.num_steps,
            "max_episode_len": int(dataset.episode_length.max()),
            "cameras": {name: list(dataset.features[name].shape) for name in self._cameras},
            "codecs": {name: dataset.features[name].codec for name in self._cameras},
        }
        return {**sizes, **asdict(self.tuning.survey)}

    def optimize(self) -> dict[str, Any]:
        """The configuration, in the sections of the old one.

        Returns:
            ``optimization``: arguments of `OptimizedEpisodicDataset` beside `use_shared_memory`; ``shared_memory``,
            ``memory_mapping``; ``dataloader``: arguments of a DataLoader; ``epistream``: the configuration of the
            streams, as `load_config` takes it.
        """
        settings = self.tuning.config.settings
        workers = self.tuning.config.loader_arguments(World.of(0, self._options.ranks, self._options.ranks))
        num_workers = workers["num_workers"] or workers["num_threads"] or 0
        open_files = min(_MAX_OPEN_FILES, max(1, len(self._dataset.shard_url)))
        return {
            "optimization": {"memory_map_cache_size": open_files, "preload_critical_data": True},
            "memory_mapping": {"enabled": True, "cache_size": open_files},
            "shared_memory": {"enabled": settings.cache.mode != "off", "preload_critical_data": True},
            "dataloader": {
                "num_workers": num_workers,
                "pin_memory": torch.cuda.is_available(),
                "persistent_workers": num_workers > 0,
                "prefetch_factor": workers["prefetch"] if num_workers else None,
            },
            "epistream": settings.model_dump(mode="json"),
        }

    def analysis(self) -> dict[str, Any]:
        """``system``, ``dataset``, the ``prediction``, the ``reasons`` of each choice and ``recommendations``."""
        tuning = self.tuning
        return {
            "system": self.analyze_system(),
            "dataset": self.analyze_dataset(),
            "prediction": {**asdict(tuning.prediction), "memory_bytes": tuning.prediction.memory_bytes},
            "reasons": dict(tuning.reasons),
            "recommendations": list(tuning.notes),
        }

    def report(self) -> str:
        """All choices with their reasons: a configuration file for `load_config` and ``epistream --config``."""
        return tuned_yaml(self.tuning)

    def print_report(self) -> None:
        """Write `report` to standard output."""
        sys.stdout.write(self.report())
