"""The part of OptimizedEpisodicDataset about whole episodes: which there are, and any part of one by its path."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.access import Access
from epistream.cache.node import NodeCache
from epistream.cache.options import CacheOptions
from epistream.errors import OptionError
from epistream.file_systems import local_path
from epistream.loader.episodic.episode_table import AnyPath, EpisodeTable, find_paths
from epistream.loader.episodic.options import (
    CTRL_TYPES,
    camera_features,
    check_choices,
    motion_features,
    takes_argument,
)
from epistream.loader.episodic.reasoning import Reasoning
from epistream.loader.order.window import Window
from epistream.loader.random_access import RandomAccess
from epistream.loader.reading.reader import ReaderOptions
from epistream.loader.samples.action_delta import ActionDelta
from epistream.loader.samples.collate import Collator, SampleOptions
from epistream.loader.samples.formats.ilstudio import IlStudioFormat
from epistream.sharding.dataset import open_dataset
from epistream.sharding.format.feature_sets import choose_features
from epistream.sharding.format.statistics import Summary, merge_all, summarize, to_plain
from epistream.working_folder import absolute

_STATISTICS = ("mean", "std", "min", "max", "q01", "q99")


class EpisodicFiles:
    """Episodes of HDF5 files and shards, by path and by number.

    Subclasses may set `state_features` and `action_features` where files call them something else than
    ``observation.state`` and ``action``, `layout` where files fit no known one, and `allow_outside_files` where
    they read from others outside of their folders; the other attributes are those of
    `OptimizedEpisodicDataset`.
    """

    state_features: Sequence[str] | None = None
    action_features: Sequence[str] | None = None
    layout: str | os.PathLike[str] | None = None
    allow_outside_files: bool = False
    # Subclasses written for IL-Studio's base class ask for it before they open a file themselves.
    loaded_data: None = None

    dataset_path_list: list[str]
    camera_names: list[str]
    data_args: Any
    chunk_size: int
    ctrl_space: str
    ctrl_type: str
    _hook_takes_path: bool | None = None

    def _open(
        self, paths: AnyPath | Sequence[AnyPath], skip_bad: bool, cache: CacheOptions, options: ReaderOptions
    ) -> None:
        """Open the paths, list their episodes, and decide what is read. All other attributes must be set before."""
        check_choices(self.chunk_size, self.ctrl_type)
        found = find_paths(paths)
        self._dataset = open_dataset(
            found,
            Access().trying(cache.retries),
            on_bad="skip" if skip_bad else "raise",
            layout=self.layout,
            allow_outside_files=self.allow_outside_files,
        )
        given = {str(absolute(local)): path for path in found if (local := local_path(path)) is not None}
        self.skipped = {given.get(name, name): reason for name, reason in self._dataset.skipped.items()}
        self.dataset_path_list = [path for path in found if path not in self.skipped]
        self._table = EpisodeTable(self._dataset)
        self._reasoning = Reasoning(self._dataset, allow_outside=self.allow_outside_files)
        if self._uses("use_reasoning"):
            self._reasoning.at(0, 0)  # files that cannot have any are told now, not at the first sample
        self.episode_paths = self._table.paths
        self.episode_ids = np.arange(len(self.episode_paths))
        self.episode_len = self._table.length
        self.cumulative_len = self._table.cumulative
        self.max_episode_len = int(self.episode_len.max())
        self._frames = options.frames
        self._collator = self._make_collator()
        node_cache = NodeCache(cache, self._dataset.storage_options)
        features, window = self._collator.features, self._collator.window
        self._access = RandomAccess(self._dataset, features, window, node_cache, options)

    @property
    def num_episodes(self) -> int:
        """Episodes."""
        return len(self.episode_paths)

    def get_language_instruction(self, dataset_path: str | None = None) -> str:
        """The instruction of an episode: the first that its file holds, or an empty text.

        A subclass may define it with or without an argument.
        """
        if dataset_path is None:
            return ""
        offsets, tasks = self._dataset.episode_tasks
        number = self._table.number(dataset_path)
        return self._dataset.tasks[tasks[offsets[number]]] if offsets[number] < offsets[number + 1] else ""

    def load_onestep_from_episode(self, dataset_path: AnyPath, start_ts: int) -> dict[str, Any]:
        """One step and the actions from it on.

        Args:
            dataset_path: one of `episode_paths`.
            start_ts: step of the episode.

        Returns:
            ``action`` (up to chunk_size, A), not padded and not normalised; ``image`` {camera: uint8 (H, W, C)};
            ``state`` (D,); ``language_instruction`` and ``reasoning``.

        Raises:
            OptionError: no such episode or step.
            EpistreamError: it cannot be read.
        """
        number = self._table.number(dataset_path)
        if not 0 <= start_ts < self.episode_len[number]:
            raise OptionError(f"{os.fspath(dataset_path)}: step {start_ts} of {self.episode_len[number]}.")
        batch = self._collator(self._access.read([number], [start_ts]), with_repeats=False)
        images = batch["image"][0].movedim(-3, -1).numpy()
        instruction, reasoning = self._instruction_and_reasoning(number, start_ts)
        return {
            "action": batch["action"][0][~batch["is_pad"][0]].numpy(),
            "image": dict(zip(self.camera_names, images, strict=True)),
            "state": batch["state"][0].numpy(),
            "language_instruction": instruction,
            "reasoning": reasoning,
        }

    def load_feat_from_episode(self, dataset_path: AnyPath, feats: str | Sequence[str] = ()) -> dict[str, Any]:
        """Whole features of one episode.

        Args:
            dataset_path: one of `episode_paths`.
            feats: ``action``, ``state``, ``image``, ``language_instruction``, or names of features; all of the first
                four by default.

        Returns:
            By name: arrays (T, ...) as recorded, ``image`` a dict by camera, the instruction as text.

        Raises:
            OptionError: no such episode or feature.
            EpistreamError: it cannot be read.
        """
        number = self._table.number(dataset_path)
        feats = (
            [feats] if isinstance(feats, str) else list(feats) or ["action", "state", "image", "language_instruction"]
        )
        result: dict[str, Any] = {}
        for feat in feats:
            if feat == "language_instruction":
                result[feat] = self._instruction(number)
            elif feat == "image":
                arrays = self._arrays(number, self._cameras)
                result[feat] = {c: arrays[f] for c, f in zip(self.camera_names, self._cameras, strict=True)}
            else:
                names = {"state": self._states, "action": self._actions}.get(feat, (feat,))
                arrays = self._arrays(number, names)
                parts = [arrays[name] for name in names]
                result[feat] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        return result

    def extract_from_episode(self, idx: int, keys: str | Sequence[str] = ()) -> dict[str, Any]:
        """`load_feat_from_episode` of the episode that has number `idx`."""
        if not 0 <= idx < self.num_episodes:
            raise OptionError(f"episode {idx} of {self.num_episodes}.")
        return self.load_feat_from_episode(self.episode_paths[idx], keys)

    def get_dataset_dir(self) -> str:
        """The folder of the first path: the key of this dataset's normalizers."""
        first = self.dataset_path_list[0]
        path = Path(first)
        return str(path) if path.is_dir() or "://" in first else str(path.parent)

    def get_dataset_statistics(self) -> dict[str, Any]:
        """Statistics over all episodes, of actions as `ctrl_type` makes them, before padding and normalisation.

        Returns:
            ``action`` and ``state``: {mean, std, min, max, q01, q99} as float32 arrays; ``num_transitions`` and
            ``num_trajectories``.
        """
        result: dict[str, Any] = {
            "num_transitions": int(self.cumulative_len[-1]),
            "num_trajectories": self.num_episodes,
        }
        for name, summary in merge_all(map(self._summaries, self.episode_paths)).items():
            plain = to_plain(summary)
            result[name] = {key: np.asarray(plain[key], np.float32) for key in _STATISTICS}
        return result

    def clear_cache(self) -> None:
        """Leave the node's cache; the last process out removes it. Reading goes on and enters it again."""
        self._access.close()

    def _make_collator(self) -> Collator:
        features, space = self._dataset.features, str(self.ctrl_space)
        self._cameras = camera_features(features, self.camera_names)
        self._states = motion_features(features, "observation.state", space, self.state_features, "state_features")
        self._actions = motion_features(features, "action", space, self.action_features, "action_features")
        kind = CTRL_TYPES[self.ctrl_type]
        delta = None
        if kind is not None:
            if len(self._states) > 1 or len(self._actions) > 1:
                raise OptionError(
                    f"ctrl_type {self.ctrl_type!r}: of several features, wanted one state and one action."
                )
            delta = ActionDelta(kind, self._actions[0], self._states[0])
            action, state = features[delta.action].shape, features[delta.state].shape
            if action != state:
                raise OptionError(
                    f"ctrl_type {self.ctrl_type!r}: {delta.action} has shape {action}, {delta.state} {state}, wanted "
                    "the same. Use ctrl_type='abs', or set state_features in a subclass to a state that matches."
                )
        sample_format = IlStudioFormat(self._states, self._actions, self.chunk_size)
        names = list(dict.fromkeys((*self._cameras, *self._states, *self._actions)))
        options = SampleOptions(
            features=names, sample_format=sample_format, action_delta=delta, image_size=self._frames.image_size
        )
        return Collator(self._dataset, options)

    def _instruction(self, episode: int) -> str:
        if self._hook_takes_path is None:
            self._hook_takes_path = takes_argument(self.get_language_instruction)
        if self._hook_takes_path:
            return self.get_language_instruction(self.episode_paths[episode])
        return self.get_language_instruction()

    def _uses(self, name: str) -> bool:
        """Whether ``data_args``, which is IL-Studio's, switches something on."""
        return bool(getattr(self.data_args, name, False))

    def _instruction_and_reasoning(self, episode: int, step: int) -> tuple[str, str | dict[str, Any]]:
        """The instruction, and what is written about a step if ``data_args.use_reasoning`` asks for it."""
        instruction = self._instruction(episode)
        if not self._uses("use_reasoning"):
            return instruction, ""
        before = self._reasoning.subtask_before(episode, step) if self._uses("use_prev_subtask") else ""
        if before:
            instruction = f"{instruction}. The previous step is: {before}"
        return instruction, self._reasoning.at(episode, step)

    def _arrays(self, episode: int, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Features of a whole episode, (T, ...) each."""
        features = choose_features(self._dataset.features, names)
        access = RandomAccess(self._dataset, features, Window(), self._access.cache, ReaderOptions(frames=self._frames))
        length = int(self.episode_len[episode])
        views = access.read(np.full(length, episode), np.arange(length))
        return {name: views[name][:, 0] for name in names}

    def _summaries(self, path: str) -> dict[str, Summary]:
        """Of the states of an episode, and of its actions as they are trained on, at every place of a chunk."""
        whole = self.load_feat_from_episode(path, ("state", "action"))
        state, action = whole["state"], whole["action"]
        delta = CTRL_TYPES[self.ctrl_type]
        if delta == "delta_step":
            action = action - state
        if delta == "delta_first":
            length = len(action)
            places = range(min(self.chunk_size, length))
            action = np.concatenate([action[place:] - state[: length - place] for place in places])
        return {"state": summarize(state), "action": summarize(action)}
