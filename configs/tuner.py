"""The tuner: measures a dataset on this machine, chooses a configuration, predicts and explains it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from epistream.configs.block_choice import BlockChooser
from epistream.configs.config import Config, load_config
from epistream.configs.machine import Machine
from epistream.configs.prediction import Choice, Prediction, predict, ring_bytes
from epistream.configs.presets import preset_for, preset_values
from epistream.configs.repacking import WORTH, Alternative, PackTrial, alternatives, video_note
from epistream.configs.survey import Survey, survey, survey_kept
from epistream.configs.tune_options import TuneOptions
from epistream.loader.measuring.blocks import JobSize, as_video, shows_several
from epistream.loader.measuring.pictures import PictureCost, compare_pictures
from epistream.loader.measuring.rates import Kind
from epistream.loader.order.judgement import MANY_FETCHES, figures, word_for
from epistream.loader.order.options import SMALL_GROUP, OrderOptions
from epistream.loader.order.plan import WANTED_SHARE, fitting_lanes
from epistream.loader.order.working_set import bytes_of
from epistream.loader.stream import EpisodeStream, Source
from epistream.units import count_text, distinct_sizes, distinct_texts, size_text

_MAX_WORKERS = 16
# Fewer workers that reach this share of the best rate are enough.
_ENOUGH = 0.95
# Decoded frames are 30 times as many bytes: only for this much more speed.
_WORTH_KEEPING = 1.2
# Rates vary; a target is met with something in hand.
_MARGIN = 1.2
# What may go to batches and caches together, of the memory that is free: the rest is the model's and the kernel's.
_RING_SHARE = 0.25


@dataclass(frozen=True)
class Tuning:
    """What was chosen.

    Attributes:
        config: validated, for `load_config` and ``from_config``.
        reasons: why, by key of the configuration.
        prediction: of one node.
        survey: what was measured.
        machine: what there is.
        options: what was asked for.
        pictures: what its colour cameras cost as they are stored, and in other forms.
        repacking: what packing would bring, where the source is not packed.
        notes: what else the user should know.
    """

    config: Config
    reasons: dict[str, str]
    prediction: Prediction
    survey: Survey
    machine: Machine
    options: TuneOptions
    pictures: tuple[PictureCost, ...]
    repacking: tuple[Alternative, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        values = asdict(replace(self, config=None))  # type: ignore[arg-type]
        values["config"] = self.config.settings.model_dump(mode="json")
        values["prediction"]["memory_bytes"] = self.prediction.memory_bytes
        return values


def tune(
    source: Source | None,
    options: TuneOptions | None = None,
    base: Config | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Tuning:
    """Measure, choose and explain. Takes some ten seconds, and the fetch of a sample of the data.

    Args:
        source: what to stream.
        options: ranks, target.
        base: what is streamed (batch size, window, features, image size); its choices of speed are replaced.
        say: told what is done next.

    Raises:
        OptionError, SourceError, FormatError: as `EpisodeStream`.
    """
    options, base = options or TuneOptions(), base or load_config()
    machine = Machine.look()
    found, whole, sample = survey(base, source, options.seconds, say)
    return _Chooser(machine, options, base, found, whole, sample, say).choose(source)


@dataclass
class _Chooser:
    """Decides key by key; each decision leaves its reason."""

    machine: Machine
    options: TuneOptions
    base: Config
    found: Survey
    whole: EpisodeStream
    sample: EpisodeStream
    say: Callable[[str], None]
    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kept_bytes: int = 0
    open_bytes: int = 0  # of the shards that the order draws from at a time

    def choose(self, source: Source | None) -> Tuning:
        preset = preset_for(self.found.dataset_bytes)
        said = f"preset {preset}: {size_text(self.found.dataset_bytes)}"
        for section, keys in preset_values(preset).items():
            for key, value in keys.items():
                self._set(f"{section}.{key}", value, said)
        if isinstance(source, str):
            self._set("source", source, "given")
        cache_bytes = self._choose_cache()
        self._choose_order(cache_bytes)
        kept = self._choose_by(self._choose_decode())
        choice = self._choose_workers(kept, cache_bytes)
        prediction = predict(kept, choice, self.options.ranks, cache_bytes)
        at_first = predict(self.found, choice, self.options.ranks, cache_bytes)
        prediction = replace(
            prediction,
            first_epoch_windows_per_s=at_first.first_epoch_windows_per_s,
            decoded_bytes=self.kept_bytes,
        )
        pictures = self._compare_pictures(self.base.source if source is None else source)
        repacking = self._look_at_packing(choice, prediction.windows_per_s, cache_bytes, pictures)
        if self.options.target and prediction.windows_per_s < self.options.target:
            rates = [f"{{:,.{digits}f}}".format for digits in range(9)]
            target, reached = distinct_texts((self.options.target, prediction.windows_per_s), rates)
            self.notes.append(f"the target of {target} windows/s is out of reach: {prediction.limit} allows {reached}")
        if self.machine.load > self.machine.num_cores:
            self.notes.append(
                f"this machine is busy (load {self.machine.load:.1f} on {self.machine.num_cores} cores): the "
                "prediction is for a quiet one"
            )
        return Tuning(
            config=load_config(**{**self.base.given, **self.values}),
            reasons=self.reasons,
            prediction=prediction,
            survey=self.found,
            machine=self.machine,
            options=self.options,
            pictures=tuple(pictures),
            repacking=tuple(repacking),
            notes=tuple(self.notes),
        )

    def _set(self, key: str, value: Any, reason: str) -> None:
        self.values[key], self.reasons[key] = value, reason

    def _choose_cache(self) -> int:
        """Where shards are kept; returns the bytes that stay in memory from one epoch to the next."""
        found, machine = self.found, self.machine
        share = float(self.values["cache.memory_fraction"])
        mode = self.base.settings.cache.mode
        if found.place.shared_by_pages:
            self._set("cache.mode", mode, f"on {found.place.name}: the page cache is one copy for all ranks already")
            return int(machine.free_bytes * share)
        room = int(min(machine.free_bytes * share, machine.shm_free_bytes))
        wanted = int(found.dataset_bytes / self.options.nodes * 1.05)
        self._set("cache.mode", mode, f"on {found.place.name}: one copy in shared memory for all ranks")
        if wanted <= room:
            # A little more than the data, so that fills of the next shard never wait for room.
            self._set("cache.budget_bytes", wanted, f"all shards of this node fit ({size_text(room)} could be had)")
            return room
        self._set("cache.budget_bytes", room, f"{share:.0%} of the free memory, and no more than /dev/shm has")
        needed, found_room = distinct_sizes(wanted, room)
        self.notes.append(
            f"{needed} of shards do not fit {found_room} of memory: "
            "name a cache.disk_directory on a local disk, or each epoch fetches them again"
        )
        return room

    def _choose_order(self, cache_bytes: int) -> None:
        """Lanes for the nodes, and K for the global batch within the memory of a node."""
        job, nodes = self.whole.job, self.options.nodes
        num_shards = int(np.count_nonzero(job.part.plan.per_shard))
        wished = int(self.values["order.lanes"])
        lanes = fitting_lanes(wished, nodes, num_shards)
        if lanes != wished:
            few = lanes < wished and wished % nodes == 0
            why = f"only {count_text(num_shards, 'shard')}" if few else f"a multiple of {nodes} nodes"
            self._set("order.lanes", lanes, why if few else f"{why}, so that each fetches its own share only")
        if self.base.settings.stream.shuffle:
            self._choose_resident_shards(lanes, num_shards, cache_bytes)
        else:
            self.open_bytes = int(job.dataset.shard_bytes.max())

    def _choose_resident_shards(self, lanes: int, num_shards: int, cache_bytes: int) -> None:
        job, nodes = self.whole.job, self.options.nodes
        plan, global_batch = job.part.plan, job.batch_size * self.options.ranks * nodes
        varied = lanes * plan.episode_mix(lanes).parts_for(global_batch, WANTED_SHARE)
        resident = max(2 * lanes, int(self.values["order.resident_shards"]), varied)
        fitting = resident
        while fitting > 2 * lanes and bytes_of(plan, lanes, fitting, 4 * global_batch, nodes) > cache_bytes:
            fitting = max(2 * lanes, fitting - lanes)
        self.open_bytes = bytes_of(plan, lanes, fitting, 4 * global_batch, nodes)
        judged = figures(plan, lanes, fitting, global_batch, nodes)
        word = word_for(judged.distinct_share)
        reason = (
            f"draws from {min(fitting, num_shards)} of {count_text(num_shards, 'shard')} at a time: shuffle {word}, "
            f"{judged.distinct_share:.2f} of the distinct episodes of a full permutation in a batch of {global_batch:,}"
        )
        if fitting < resident:
            reason += f"; more would not fit {size_text(cache_bytes)}"
        self._set("order.resident_shards", fitting, reason)
        if word != "good":
            self.notes.append(
                f"shuffle {word}: {judged.distinct_share:.2f} of the distinct episodes that a full permutation gives a "
                f"batch; {varied} resident shards of {size_text(bytes_of(plan, lanes, varied, global_batch, nodes))} "
                "on a node would be good"
            )
        if judged.fetch_factor >= MANY_FETCHES:
            self.notes.append(
                f"each of {nodes} nodes fetches {judged.fetch_factor:.1f} times its share of "
                f"{count_text(num_shards, 'shard')}: more, smaller ones are shared better"
            )

    def _choose_decode(self) -> Survey:
        """Whether decoded frames are kept; returns the survey as it is then."""
        found, nodes = self.found, self.options.nodes
        kept = survey_kept(
            found, self.base, self.sample, self.options.seconds, lambda text: self.say(f"{text}, decoded before")
        )
        if kept is None:
            self._set("stream.decode", "per_read", "no frames to decode, or no memory to keep those of a few episodes")
            return found
        room = self._room
        gain = kept.together["processes"].windows_per_s / found.together["processes"].windows_per_s * found.more_frames
        times = f"gathering decoded frames is {gain:.1f} times as fast"
        # The reader wants room for the shards that it decodes from, wherever they are kept.
        needed = found.decoded_bytes // nodes + (
            self.open_bytes if found.place.shared_by_pages else found.dataset_bytes // nodes
        )
        asked, had = distinct_sizes(needed, room)
        if needed > room or gain < _WORTH_KEEPING:
            too_large = f"but {asked} do not fit {had} of memory"
            why = too_large if needed > room else "not worth the memory"
            self._set("stream.decode", "per_read", f"{times}, {why}")
            return found
        self._set("stream.decode", "once", f"{times}, and {asked} fit {had} of memory")
        self._set("cache.budget_bytes", int(needed * 1.05), "decoded frames, and the shards they come from")
        self.kept_bytes = found.decoded_bytes // nodes
        return kept

    def _choose_workers(self, found: Survey, cache_bytes: int) -> Choice:
        ranks, machine = self.options.ranks, self.machine
        most = max(1, min(_MAX_WORKERS, machine.num_cores // ranks))
        if machine.gpus and most > 2:
            most -= 1  # a core for the process that drives the card
        prefetch = self._prefetch(most)
        kinds: tuple[Kind, ...] = ("processes", "threads")
        choices = [Choice(kind, number, prefetch) for kind in kinds for number in range(1, most + 1)]
        rate = {choice: predict(found, choice, ranks, cache_bytes).windows_per_s for choice in choices}
        best = max(rate.values())
        goal = best * _ENOUGH
        if self.options.target is not None:
            goal = min(goal, self.options.target * _MARGIN)
        enough = [choice for choice in rate if rate[choice] >= goal]
        choice = min(enough, key=lambda each: (each.number, each.kind == "threads"))
        kind = choice.kind if choice.number > 1 else {"processes": "process", "threads": "thread"}[choice.kind]
        others = f"{machine.num_cores} cores for {ranks} ranks" if ranks > 1 else f"{machine.num_cores} cores"
        what = f"{others}; {choice.number} {kind} a rank: {rate[choice]:,.0f} windows/s, the best is {best:,.0f}"
        if choice.kind == "processes":
            self._set("loader.num_workers", choice.number, what)
        else:
            self._set("loader.num_workers", 0, "threads are faster here: no batch crosses a process border")
            self._set("loader.num_threads", choice.number, what)
        return choice

    def _prefetch(self, workers: int) -> int:
        found, wanted = self.found, int(self.values["loader.prefetch"])
        room = self.machine.free_bytes * _RING_SHARE
        reason = f"batches of {size_text(found.batch_bytes)}"
        while wanted > 1 and ring_bytes(found, Choice("processes", workers, wanted), self.options.ranks) > room:
            wanted -= 1
            reason = f"batches of {size_text(found.batch_bytes)}: more would take over {size_text(room)}"
        self._set("loader.prefetch", wanted, reason)
        return wanted

    def _choose_by(self, found: Survey) -> Survey:
        """Windows, or blocks whose frames are decoded once; returns the survey as it is then."""
        options, room = self.options, self._room
        if self.values["stream.decode"] == "once":
            if self.whole.job.part.plan.blocks is not None and "order.by" not in self.base.given:
                self._set("order.by", "windows", "all decoded frames are kept: blocks would save nothing")
            return found
        chooser = BlockChooser(self.base, self.whole, self.sample, self._size, options.seconds, self.say)
        choice = chooser.choose(found, self._order, max(0, room - self.open_bytes))
        if choice is None:
            return found
        for key, (value, reason) in choice.values.items():
            self._set(key, value, reason)
        if choice.note is not None:
            self.notes.append(choice.note)
        if choice.pool is not None:
            self.kept_bytes = choice.pool.num_bytes
            shards = self.open_bytes if found.place.shared_by_pages else found.dataset_bytes // options.nodes
            budget = int(min(room, (shards + self.kept_bytes) * 1.05))
            self._set("cache.budget_bytes", budget, "blocks of decoded frames, and the shards they come from")
        return choice.survey

    @property
    def _room(self) -> int:
        """Bytes of shared memory for shards and decoded frames."""
        machine = self.machine
        return int(min(machine.shm_free_bytes, machine.free_bytes * self.values["cache.memory_fraction"]))

    @property
    def _size(self) -> JobSize:
        # Before their number is known: as many workers as there can be read at a time.
        workers = max(1, min(_MAX_WORKERS, self.machine.num_cores // self.options.ranks))
        return JobSize(self.whole.job.batch_size, self.options.ranks, self.options.nodes, max(4, workers))

    @property
    def _order(self) -> OrderOptions:
        """The order as chosen so far."""
        lanes, resident = int(self.values["order.lanes"]), int(self.values["order.resident_shards"])
        return OrderOptions(lanes=lanes, resident_shards=max(2 * lanes, resident))

    def _compare_pictures(self, source: Source | None) -> list[PictureCost]:
        """What colour cameras cost in other forms, with the memory of the pools of orders by blocks."""
        whole, options = self.whole.job, self.options
        rows, missing = compare_pictures(self.sample.job, whole, self.found.dataset_bytes, options.seconds, self.say)
        self.sample.job.cache.close()
        if missing is not None:
            self.notes.append(missing)
        by_blocks = self.values.get("order.by") == "blocks" and shows_several(whole)
        pooled = []
        for row in rows:
            pool_bytes = 0
            if (by_blocks or (row.group_steps or 1) > SMALL_GROUP) and self.base.settings.stream.shuffle:
                order = replace(self._order, by="blocks").resolved(row.group_steps)
                part = as_video(whole.part, row.group_steps or 1) if row.is_video else whole.part
                pool = self._size.fitting_pool(part, order, max(0, self._room - self.open_bytes))
                pool_bytes = 0 if pool is None else pool.num_bytes
            pooled.append(replace(row, pool_bytes=pool_bytes))
        note = video_note(pooled, self.whole, source, self.found.place.shared_by_pages, self._room)
        if note is not None:
            self.notes.append(note)
        return pooled

    def _look_at_packing(
        self, choice: Choice, now: float, cache_bytes: int, pictures: list[PictureCost]
    ) -> list[Alternative]:
        trial = PackTrial(self.found, self.base, self.sample, self.options.seconds, self.say)
        ways = []
        for name, packed, pool_bytes in alternatives(trial, pictures):
            prediction = predict(packed, choice, self.options.ranks, cache_bytes)
            prediction = replace(prediction, decoded_bytes=pool_bytes)
            ways.append(Alternative(name, packed.dataset_bytes, prediction, prediction.windows_per_s > WORTH * now))
        if ways and not any(way.pays for way in ways):
            self.notes.append("packing the data does not make reading it faster")
        return ways
