"""OptimizedEpisodicDataset: the map-style dataset class of IL-Studio, over the same reader and cache as the streams."""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import get_worker_info

from epistream.cache.options import CacheOptions
from epistream.errors import EpistreamError
from epistream.file_systems import local_path
from epistream.loader.episodic.episode_table import AnyPath
from epistream.loader.episodic.files import EpisodicFiles
from epistream.loader.episodic.options import short_form
from epistream.loader.episodic.sample import assemble, find_normalizer, normalized
from epistream.loader.frames.frames import FrameOptions
from epistream.loader.monitoring.asked import tell
from epistream.loader.reading.reader import ReaderOptions
from epistream.loader.samples.failures import portable, reader_text, told
from epistream.shown_urls import shown

_log = logging.getLogger(__name__)

Sample = dict[str, Any]


class OptimizedEpisodicDataset(EpisodicFiles, TorchDataset[Sample]):
    """Windows of recorded episodes by number, one for each step: a drop-in for IL-Studio's class of this name.

    A sample is a dict; K cameras in the order of `camera_names`:

    | key        | type                                                                 |
    | ---------- | -------------------------------------------------------------------- |
    | image      | uint8 (K, C, H, W)                                                   |
    | state      | float32 (D,)                                                         |
    | action     | float32 (chunk_size, A), zeros after the end, then normalised        |
    | is_pad     | bool (chunk_size,), True after the end                               |
    | raw_lang   | str, the episode's instruction                                       |
    | reasoning  | str; with ``data_args.use_reasoning`` what the file says of the step |
    | timestamp  | int, step of the episode                                             |
    | episode_id | int                                                                  |

    It is map-style: samplers decide the order, and ``DataLoader`` reads a whole batch in one call. `EpisodeStream`
    is faster, resumes in the middle of an epoch and needs no sampler.

    Subclasses may define `get_language_instruction` (with or without the episode's path), `load_onestep_from_episode`
    and `_fallback_load_onestep`, and may set `state_features` and `action_features` where a file calls them
    something else than ``observation.state`` and ``action``, and `layout`, a YAML file, where it fits no known one.

    Attributes:
        dataset_path_list: files and folders, after folders of HDF5 files were walked.
        episode_paths: (E,) the file of each episode, with ``#n`` where a file holds several.
        episode_ids: (E,) 0 to E - 1.
        episode_len: (E,) steps.
        cumulative_len: (E,) steps up to the end of each.
        max_episode_len: the longest.
        skipped: why each path was left out, with ``skip_bad=True``.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the signature of the class that this one stands in for
        self,
        dataset_path_list: AnyPath | Sequence[AnyPath],
        camera_names: Sequence[str],
        action_normalizers: Mapping[str, Any] | Any = None,
        state_normalizers: Mapping[str, Any] | Any = None,
        data_args: Any = None,
        chunk_size: Any = 16,
        ctrl_space: Any = "ee",
        ctrl_type: str = "delta",
        use_shared_memory: bool = True,
        memory_map_cache_size: int = 100,
        preload_critical_data: bool = True,
        *,
        image_size: tuple[int, int] | None = None,
        preload_data: bool = False,
        enable_monitoring: bool = False,
        skip_bad: bool = False,
        cache: CacheOptions | None = None,
    ) -> None:
        """Open the indexes; no episode is read.

        The shorter form ``(paths, cameras, chunk_size, ctrl_space, ctrl_type, image_size, preload_data)`` works too,
        also by position: a number in third place is the chunk size.

        Args:
            dataset_path_list: HDF5 files, folders of them, shard folders or URLs.
            camera_names: as in the files, or as features; a camera that is not there is an error.
            action_normalizers: by dataset folder (see `get_dataset_dir`), or one for all: a `Normalizer`, anything
                with ``normalize(values)``, or a function. Applied after zero padding.
            state_normalizers: likewise for the state.
            data_args: kept as an attribute. Its ``use_reasoning`` and ``use_prev_subtask`` mean what they do in
                IL-Studio; HDF5 files only.
            chunk_size: actions of a sample.
            ctrl_space: which of several states and actions, where a file has ``state_ee`` and ``state_joint``.
            ctrl_type: ``"abs"``; ``"delta"`` or ``"delta_step"``, action[t+i] - state[t+i]; ``"delta_first"``,
                action[t+i] - state[t].
            use_shared_memory: False reads every file directly.
            memory_map_cache_size: files held open during one batch.
            preload_critical_data: kept for callers; lengths and indexes need no loading.
            image_size: (width, height) to which cameras are resized; note that streams say (height, width).
            preload_data: read every file once now, so that the cache or the page cache has it.
            enable_monitoring: log the report every 1,000 samples.
            skip_bad: leave out paths that cannot be opened, and say why in `skipped`.
            cache: all options of the cache; wins over `use_shared_memory`.

        Raises:
            OptionError: options that cannot work, alone or with these files.
            SourceError, LayoutError, FormatError: a path that cannot be opened; it is named.
        """
        if isinstance(action_normalizers, int):
            positional = (action_normalizers, state_normalizers, data_args, chunk_size, ctrl_space)
            chunk_size, ctrl_space, ctrl_type, image_size, preload_data = short_form(
                positional, ctrl_type, image_size, preload_data
            )
            action_normalizers = state_normalizers = data_args = None
        self.camera_names = list(camera_names)
        self.data_args = data_args
        self.chunk_size = chunk_size
        self.ctrl_space = ctrl_space
        self.ctrl_type = ctrl_type
        self.set_action_normalizers(action_normalizers)
        self.set_state_normalizers(state_normalizers)
        frames = FrameOptions(None if image_size is None else (image_size[1], image_size[0]), "per_read")
        cache = cache or CacheOptions(mode="auto" if use_shared_memory else "off")
        self._open(dataset_path_list, skip_bad, cache, ReaderOptions(max(memory_map_cache_size, 1), frames))
        # What this process has read.
        self._num_samples = self._num_fallbacks = 0
        self._read_s = 0.0
        self._enable_monitoring = enable_monitoring
        if preload_data:
            self._preload()

    # What a training loop calls.

    def __len__(self) -> int:
        return int(self.cumulative_len[-1])

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples in one read; ``DataLoader`` calls it with the indices of a batch.

        Raises:
            IndexError: an index that is not there.
            EpistreamError: what cannot be read, unless `_fallback_load_onestep` gives it.
        """
        try:
            return self._samples(indices)
        except Exception as error:
            known = error if get_worker_info() is None else portable(error)
            if known is error:
                raise
            raise known from error

    def _samples(self, indices: Sequence[int]) -> list[Sample]:
        places = [self._table.locate(int(index)) for index in indices]
        if not places:
            return []
        started = time.perf_counter()
        # A subclass, or this instance, may have one of its own.
        hook = getattr(self.load_onestep_from_episode, "__func__", None)
        if hook is not OptimizedEpisodicDataset.load_onestep_from_episode:
            samples = [self._noted(self._from_onestep, *place) for place in places]
        else:
            samples = self._read(places)
        self._read_s += time.perf_counter() - started
        before, self._num_samples = self._num_samples, self._num_samples + len(samples)
        if self._enable_monitoring and before // 1000 != self._num_samples // 1000:
            tell(_log, self.performance_report())
        return samples

    # Hooks of subclasses.

    def _fallback_load_onestep(self, dataset_path: str, start_ts: int) -> Mapping[str, Any] | None:
        """Called when an episode cannot be read. A subclass returns what `load_onestep_from_episode` would.

        Without one, or when it returns None, the error is raised.
        """
        return None

    # Settings and reports.

    def set_action_normalizers(self, action_normalizers: Mapping[str, Any] | Any) -> None:
        """Replace the normalizers of actions, see the constructor."""
        self.action_normalizers = action_normalizers if action_normalizers is not None else {}

    def set_state_normalizers(self, state_normalizers: Mapping[str, Any] | Any) -> None:
        """Replace the normalizers of the state, see the constructor."""
        self.state_normalizers = state_normalizers if state_normalizers is not None else {}

    def performance_report(self) -> str:
        """What this process has read, and where the bytes came from, in a few lines."""
        stats = self._access.stats()
        rate = self._num_samples / self._read_s if self._read_s else 0.0
        return (
            f"OptimizedEpisodicDataset, process {os.getpid()}: {self._num_samples:,} samples in "
            f"{self._read_s:.1f} s of reading ({rate:,.0f}/s), {self._num_fallbacks:,} by the fallback\n"
            f"cache: {stats.tier or 'not used'} ({stats.reason or 'nothing was read'}); {stats.hits:,} hits, "
            f"{stats.fills:,} fills, {stats.direct:,} direct reads, {stats.wait_seconds:.1f} s of waiting for others"
        )

    def print_performance_report(self) -> None:
        """Write `performance_report` to standard output."""
        sys.stdout.write(f"{self.performance_report()}\n")

    # Inside.

    def _read(self, places: Sequence[tuple[int, int]]) -> list[Sample]:
        """Samples at (episode, step), in one read; one by one when that fails, so that only what is bad falls back."""
        episodes, steps = zip(*places, strict=True)
        try:
            batch = self._collator(self._access.read(episodes, steps), with_repeats=False)
        except (EpistreamError, OSError) as error:
            if len(places) > 1:
                return [sample for place in places for sample in self._read([place])]
            return [self._noted(self._fall_back, error, *places[0])]
        samples = []
        for row, (episode, step) in enumerate(places):
            sample = {key: batch[key][row] for key in ("image", "state", "action", "is_pad")}
            samples.append(self._noted(self._described, sample, episode, step))
        return samples

    def _described(self, sample: Sample, episode: int, step: int) -> Sample:
        sample["raw_lang"], sample["reasoning"] = self._instruction_and_reasoning(episode, step)
        return self._finished(sample, episode, step)

    def _noted(self, function: Callable[..., Sample], *arguments: Any) -> Sample:
        """What a function that calls hooks gives. What it raises says of which episode and step, its last arguments."""
        episode, step = arguments[-2:]

        def origin() -> str:
            path = shown(self.episode_paths[episode])
            return f"epistream: this was episode {episode} ({path}), step {step}, in {reader_text()}"

        return told(lambda given: function(*given), arguments, origin, "a hook or normalizer of the dataset")

    def _from_onestep(self, episode: int, step: int) -> Sample:
        """A sample from what a subclass's own `load_onestep_from_episode` gives."""
        path = self.episode_paths[episode]
        try:
            onestep = self.load_onestep_from_episode(path, step)
        except (EpistreamError, OSError, KeyError) as error:
            return self._fall_back(error, episode, step)
        return self._finished(assemble(onestep, self.camera_names, self.chunk_size, path), episode, step)

    def _fall_back(self, error: Exception, episode: int, step: int) -> Sample:
        path = self.episode_paths[episode]
        onestep = self._fallback_load_onestep(path, step)
        if onestep is None:
            raise error
        if self._num_fallbacks == 0:
            _log.warning("%s, step %d: read by the fallback, and others may be, because of: %s", path, step, error)
        self._num_fallbacks += 1
        sample = assemble(onestep, self.camera_names, self.chunk_size, path)
        if not sample["raw_lang"]:
            sample["raw_lang"] = self._instruction(episode)
        return self._finished(sample, episode, step)

    def _finished(self, sample: Sample, episode: int, step: int) -> Sample:
        path = self.episode_paths[episode]
        for key, normalizers, features in (
            ("state", self.state_normalizers, self._states),
            ("action", self.action_normalizers, self._actions),
        ):
            chosen = find_normalizer(normalizers, path, self.get_dataset_dir)
            if chosen is not None:
                sample[key] = normalized(sample[key], chosen, features, key)
        return {**sample, "timestamp": step, "episode_id": episode}

    def _preload(self) -> None:
        """Bring every shard into the cache; what is read in place, into the page cache."""
        _, first = np.unique(self._dataset.episode_shard, return_index=True)
        for episode in first.tolist():
            self._access.read([episode], [0])
        if self._access.stats().tier == "direct" and hasattr(os, "posix_fadvise"):
            for path in filter(None, map(local_path, dict.fromkeys(self._dataset.shard_url))):
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
