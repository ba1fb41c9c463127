"""Which instruction stands for an episode that owns several."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from epistream.loader.order.random_integers import Purpose, stream
from epistream.sharding.manifest.opened_dataset import Dataset

Instruction = Literal["first", "random", "all"]


def first_task(dataset: Dataset, episode_index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Task id (B,) of each episode's first instruction, -1 where it has none."""
    return _pick(dataset, episode_index, np.zeros(len(episode_index), dtype=np.uint64))


def random_task(
    dataset: Dataset,
    episode_index: NDArray[np.int64],
    window: tuple[NDArray[np.int64], NDArray[np.int64]],
    seed: int,
    epoch: int,
) -> NDArray[np.int64]:
    """Task id (B,) of one instruction of each episode, -1 where it has none.

    The draw is a function of seed, epoch and window alone: who reads the window, and in which batch, changes nothing.

    Args:
        dataset: where the instructions are.
        episode_index: (B,) episodes.
        window: shard (B,) and number within the shard (B,).
        seed: of the order.
        epoch: of the order.
    """
    # One key per epoch and a hash per window: a generator for each window would cost more than its read.
    key = stream(Purpose.INSTRUCTION, seed, epoch).random_raw(2).astype(np.uint64)
    shard, number = (part.astype(np.uint64) for part in window)
    return _pick(dataset, episode_index, _mix(_mix(shard ^ key[0]) ^ number ^ key[1]))


def nth_task(dataset: Dataset, episode_index: NDArray[np.int64], place: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Task id (B,) of the instruction at a place (B,) among those of its episode."""
    offsets, task_ids = dataset.episode_tasks
    found: NDArray[np.int64] = task_ids[offsets[episode_index] + place]
    return found


def all_tasks(dataset: Dataset, episode_index: NDArray[np.int64]) -> list[tuple[str, ...]]:
    """Every instruction of each episode."""
    offsets, task_ids = dataset.episode_tasks
    return [
        tuple(dataset.tasks[task] for task in task_ids[offsets[episode] : offsets[episode + 1]].tolist())
        for episode in episode_index.tolist()
    ]


def _pick(dataset: Dataset, episode_index: NDArray[np.int64], draw: NDArray[np.uint64]) -> NDArray[np.int64]:
    offsets, task_ids = dataset.episode_tasks
    first = offsets[episode_index].astype(np.int64)
    count = offsets[episode_index + 1].astype(np.int64) - first
    tasks = np.full(len(episode_index), -1, dtype=np.int64)
    has_task = count > 0
    place = draw[has_task] % count[has_task].astype(np.uint64)
    tasks[has_task] = task_ids[first[has_task] + place.astype(np.int64)]
    return tasks


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64 bits whose output looks random.

    Source: the finalizer of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
    """
    mixed: NDArray[np.uint64] = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
