"""Shapes of datasets and jobs over which the order is tested."""

import random
from dataclasses import dataclass

import numpy as np
from laws import global_batches

from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import Plan
from epistream.loader.order.schedule import Schedule
from epistream.loader.order.world import World


@dataclass(frozen=True)
class Job:
    """Ranks of each node, workers of each rank, and the batch size of a rank."""

    ranks_per_node: tuple[int, ...]
    num_workers: int
    batch_size: int

    @property
    def size(self):
        return sum(self.ranks_per_node)

    @property
    def global_batch(self):
        return self.size * self.batch_size

    def ranks(self):
        """(node, local rank) and World of every rank, in the order of ranks."""
        uneven = len(set(self.ranks_per_node)) > 1
        rank = 0
        for node, local_size in enumerate(self.ranks_per_node):
            for local in range(local_size):
                yield (node, local), World(rank, self.size, local, local_size, node, len(self.ranks_per_node), uneven)
                rank += 1


def plan_of(windows_of_shard, **options):
    count = len(windows_of_shard)
    per_shard = np.asarray(windows_of_shard, np.int64)
    return Plan(per_shard, np.full(count, 2**20), np.full(count, 4), OrderOptions(**options))


def schedule_of(plan, world, batch_size, epoch=0, start=0, remainder="drop"):
    seed = plan.options.seed
    return Schedule(plan.num_windows, plan.num_lanes, seed, epoch, start, world, batch_size, remainder)


def windows_at(order, positions):
    shard, window = order.windows(positions)
    return list(zip(shard.tolist(), window.tolist(), strict=True))


def whole_epoch(plan, epoch):
    return windows_at(plan.epoch(epoch), np.arange(plan.num_windows))


def run_epoch(plan, job, epoch=0, start=0, remainder="drop"):
    """What every rank's workers would read; and the windows that come flagged as repeats."""
    run, repeats = [], []
    order = plan.epoch(epoch)
    for _, world in job.ranks():
        schedule = schedule_of(plan, world, job.batch_size, epoch, start, remainder)
        batches = []
        for batch_index in range(schedule.num_batches):
            positions, is_repeat = schedule.positions(batch_index)
            batches.append(windows_at(order, positions))
            repeats += [window for window, repeat in zip(batches[-1], is_repeat.tolist(), strict=True) if repeat]
        run.append(batches)
    return run, repeats


def shapes(count):
    """`count` datasets as (windows of each shard, options), the corners first, the rest at random."""
    corners = [
        ([1], {"lanes": 8}),
        ([7], {"lanes": 2}),
        ([64], {"lanes": 8}),
        ([1, 1, 1], {"lanes": 8}),
        ([0, 5, 0, 0, 9, 0], {"lanes": 3}),
        ([100, 1, 1, 1, 1, 1, 1, 1], {"lanes": 4}),
        ([3] * 40, {"lanes": 1, "resident_shards": 40}),
        ([11] * 40, {"lanes": 8, "resident_shards": 16}),
        ([2] * 40, {"lanes": 3, "resident_shards": 21, "reshuffle_lanes": True}),
    ]
    pick = random.Random(20240607)
    for number in range(count):
        if number < len(corners):
            windows, options = corners[number]
        else:
            windows = [pick.choice((0, 1, 2, 5, pick.randint(1, 60))) for _ in range(pick.randint(1, 40))]
            windows[-1] += 1
            lanes = pick.choice((1, 2, 3, 4, 5, 8))
            options = {
                "lanes": lanes,
                "resident_shards": pick.choice((None, pick.randint(2 * lanes, 6 * lanes))),
                "reshuffle_lanes": pick.random() < 0.3,
            }
        yield windows, {**options, "seed": number * 7919}


def declared_shapes():
    """As `shapes`, of jobs whose size is declared: L and K then follow from it."""
    pick = random.Random(7)
    many = [pick.randint(1, 2) for _ in range(260)]
    return [
        ([11] * 40, {"nodes": 1, "global_batch": 24, "seed": 1}),
        ([11] * 40, {"nodes": 8, "global_batch": 24, "seed": 2}),
        (many, {"nodes": 127, "global_batch": 254, "seed": 3}),
        (many, {"nodes": 128, "global_batch": 256, "seed": 4, "reshuffle_lanes": True}),
        ([50, 3, 20], {"nodes": 8, "global_batch": 16, "seed": 5}),
        ([64], {"nodes": 3, "seed": 6}),
        ([7], {"nodes": 128, "global_batch": 8, "seed": 7}),
        ([60] * 30, {"lanes": 3, "resident_shards": 6, "global_batch": 48, "seed": 8}),
        ([60] * 30, {"nodes": 2, "global_batch": 48, "resident_bytes": "3MiB", "seed": 9}),
    ]


TOPOLOGIES = [(1,), (2,), (4,), (1, 1), (2, 2), (1, 1, 1), (4, 4), (1, 1, 1, 1), (2, 1), (3, 3, 3), (1, 2, 3), (8,)]


def play(plan, remainder, job, state, num_steps):
    """Global batches from a state on, through the ends of epochs, as a training loop would see them."""
    epoch, position = state or (0, 0)
    batches, states = [], []
    while len(batches) < num_steps:
        run, _ = run_epoch(plan, job, epoch, position, remainder)
        schedule = schedule_of(plan, next(job.ranks())[1], job.batch_size, epoch, position, remainder)
        for t, batch in enumerate(global_batches(run)):
            batches.append(batch)
            states.append((epoch, schedule.position_after(t)))
        epoch, position = epoch + 1, 0
    return batches[:num_steps], states[:num_steps]


def spans_of_blocks(plan, anchors, epoch):
    """Lane, first and last position of every block: (b,) each."""
    positions = np.arange(plan.num_windows)
    episode, _, step = anchors.locate(*plan.epoch(epoch).windows(positions))
    names = np.stack([positions % plan.num_lanes, episode, step // plan.blocks.steps])
    names, block = np.unique(names, axis=1, return_inverse=True)
    first = np.full(names.shape[1], plan.num_windows)
    last = np.zeros(names.shape[1], np.int64)
    np.minimum.at(first, block.reshape(-1), positions)
    np.maximum.at(last, block.reshape(-1), positions)
    return names[0], first, last


def most_open(first, last, in_flight, num_windows):
    """The most things of which some position lies within, or on both sides of, as many positions as are in flight."""
    change = np.zeros(num_windows + in_flight + 2, np.int64)
    np.add.at(change, np.maximum(first - in_flight + 1, 0), 1)
    np.add.at(change, last + 1, -1)
    return int(np.cumsum(change)[:num_windows].max())
