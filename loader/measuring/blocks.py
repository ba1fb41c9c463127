"""What an order by blocks takes: memory of its pool on a node, blocks in a batch; and an order to measure it with."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from epistream.loader.order.anchors import Anchors
from epistream.loader.order.options import LANE_BLOCKS, OrderOptions
from epistream.loader.order.plan import Plan
from epistream.loader.order.schedule import Schedule
from epistream.loader.order.working_set import budget_advice, bytes_of
from epistream.loader.order.world import World
from epistream.loader.reading.job import BATCHES_AT_ONCE, DatasetPart, ReadJob, planned_pool
from epistream.sharding.pictures.codecs import CODECS
from epistream.units import count_text, distinct_sizes, size_text

# A small pool is full after few batches, and is drawn from as a large one is. It must not hold all blocks of a sample,
# which would be found in it in the next epoch.
_LANES, _MOST_BLOCKS, _SHARE = 2, 16, 1 / 4
# Batches whose blocks are counted, at each place.
_COUNTED = 20


@dataclass(frozen=True)
class Pool:
    """Decoded blocks that one node keeps.

    Attributes:
        options: the order.
        num_slots: blocks at a time, those in flight included.
        num_bytes: shared memory that they take.
    """

    options: OrderOptions
    num_slots: int
    num_bytes: int


@dataclass(frozen=True)
class JobSize:
    """What a pool depends on beside its order.

    Attributes:
        batch_size: windows per batch and rank.
        ranks: of each node.
        nodes: of the job.
        batches_at_once: of each rank that are being read at a time: one for each worker.
    """

    batch_size: int
    ranks: int = 1
    nodes: int = 1
    batches_at_once: int = BATCHES_AT_ONCE

    def pool(self, part: DatasetPart, options: OrderOptions) -> Pool | None:
        """The pool that an order by blocks of a part's windows takes; None if no camera must be decoded."""
        plan = part.plan.with_options(options)
        part = replace(part, plan=plan, frames=replace(part.frames, decode="auto"))
        world = World.of(0, self.nodes * self.ranks, self.ranks)
        schedule = Schedule(plan.num_windows, plan.num_lanes, 0, 0, 0, world, self.batch_size, "pad")
        pool = planned_pool(part, schedule, self.batches_at_once)
        chosen = replace(options, pool_blocks=plan.pool_blocks)
        return None if pool is None else Pool(chosen, pool.num_slots, pool.num_bytes)

    def fitting_pool(self, part: DatasetPart, options: OrderOptions, room: int) -> Pool | None:
        """The pool of the most blocks, 16 a lane or those of the options, that so many bytes hold; the least if none.

        None if no camera must be decoded.
        """
        lanes = part.plan.with_options(replace(options, pool_blocks=None)).num_lanes
        most = LANE_BLOCKS if options.pool_blocks is None else max(2, options.pool_blocks // lanes)
        pool = None
        for each in range(most, 1, -1):
            pool = self.pool(part, replace(options, pool_blocks=max(each * lanes, 2 * options.lanes)))
            if pool is None or pool.num_bytes <= room:
                break
        return pool


def as_video(part: DatasetPart, group_steps: int) -> DatasetPart:
    """A part as it would be with its colour cameras packed as H.264, at the size that is streamed."""
    features = {
        name: replace(part.frames.shown(f), codec="h264", jpeg_channels=None, group_steps=group_steps)
        if f.kind == "frames" and CODECS["h264"].can_hold(f.dtype, f.shape[2])
        else f
        for name, f in part.features.items()
    }
    return replace(part, features=features)


def shows_several(job: ReadJob) -> bool:
    """Whether windows show several steps of a camera."""
    return any(len(job.part.window.offsets(name)) > 1 for name, f in job.features.items() if f.kind == "frames")


def measuring_order(
    episode_length: NDArray[np.int64], block_steps: int | None, group_steps: int | None
) -> OrderOptions:
    """An order by blocks to measure with, of a small pool.

    Args:
        episode_length: (E,) steps of the episodes of the sample.
        block_steps: of a block; as by default if None.
        group_steps: of the longest group of cameras that are video.
    """
    order = OrderOptions(by="blocks", block_steps=block_steps).resolved(group_steps)
    num_blocks = int(np.sum(-(-episode_length // (order.block_steps or 1))))
    few = max(2, min(_MOST_BLOCKS, int(num_blocks * _SHARE)))
    return replace(order, lanes=min(_LANES, few // 2), pool_blocks=few)


def warm_up_batches(job: ReadJob, number: int, least: int) -> int:
    """Batches of each of so many workers after which a pool is full and is drawn from as it always will be."""
    plan = job.part.plan
    if plan.blocks is None:
        return least
    windows = min(plan.num_windows, 2 * plan.pool_blocks * plan.blocks.steps)
    return max(least, -(-windows // (job.batch_size * number)))


def distinct_blocks(plan: Plan, anchors: Anchors, global_batch: int) -> tuple[float, float, float]:
    """Mean distinct blocks in a global batch, counted: in some first batches of an epoch, some in the middle, and last.

    Args:
        plan: an order by blocks.
        anchors: of its windows.
        global_batch: windows of a batch over all ranks.
    """
    steps = 1 if plan.blocks is None else plan.blocks.steps
    order, num_batches = plan.epoch(0), max(1, plan.num_windows // global_batch)
    number = min(_COUNTED, num_batches)
    means = []
    for first in (0, (num_batches - number) // 2, num_batches - number):
        found = []
        for batch in range(first, first + number):
            positions = np.arange(batch * global_batch, min((batch + 1) * global_batch, plan.num_windows))
            episode, _, step = anchors.locate(*order.windows(positions))
            found.append(len(np.unique(np.stack([episode, step // steps]), axis=1).T))
        means.append(float(np.mean(found)))
    first_mean, middle, last = means
    return first_mean, middle, last


def memory_advice(part: DatasetPart, size: JobSize, budget_bytes: int) -> str | None:
    """What to tell a user whose budget cannot hold an order's shards and decoded blocks; None if it can."""
    plan, global_batch = part.plan, size.batch_size * size.ranks * size.nodes
    pool = None if plan.blocks is None else size.pool(part, plan.options)
    advice = budget_advice(plan, budget_bytes, global_batch)
    if pool is None or advice is not None:
        return advice
    shards = bytes_of(plan, plan.num_lanes, plan.resident_shards, global_batch, size.nodes)
    if shards + pool.num_bytes <= budget_bytes:
        return None
    allowed, taken, beside = distinct_sizes(budget_bytes, pool.num_bytes, shards)
    found = (
        f"cache budget: {allowed}, but the order draws from up to {count_text(pool.num_slots, 'block')} at once "
        f"(pool_blocks={plan.pool_blocks}), {taken} of decoded frames, beside {beside} of shards."
    )
    fit = _fit(part, size, budget_bytes)
    if fit is None:
        is_video = any(feature.group_steps is not None for feature in part.features.values())
        smaller = "" if is_video else "smaller block_steps, "
        return f"{found} No order by blocks fits: use {smaller}by='windows', or a larger budget."
    numbers = {"lanes": plan.num_lanes, "resident_shards": plan.resident_shards}
    changed = [
        f"{name}={getattr(fit.options, name)}, " for name in numbers if getattr(fit.options, name) != numbers[name]
    ]
    alone = " without global_batch, which raises them" if plan.options.global_batch is not None else ""
    return (
        f"{found} Use {''.join(changed)}pool_blocks={fit.options.pool_blocks} ({size_text(fit.num_bytes)}){alone}, "
        "or a larger budget."
    )


def _fit(part: DatasetPart, size: JobSize, budget_bytes: int) -> Pool | None:
    """An order by blocks that fits: fewer blocks rather than fewer shards, and these rather than fewer lanes."""
    plan, global_batch = part.plan, size.batch_size * size.ranks * size.nodes
    nodes = plan.options.nodes or 1
    for lanes in range(plan.num_lanes, 0, -1):
        if plan.num_lanes % lanes or lanes % nodes:
            continue
        for resident in dict.fromkeys((plan.resident_shards, 2 * lanes)):
            left = budget_bytes - bytes_of(plan, lanes, resident, global_batch, size.nodes)
            options = replace(
                plan.options,
                global_batch=None,
                lanes=lanes,
                resident_shards=resident,
                pool_blocks=plan.pool_blocks,
            )
            pool = size.fitting_pool(part, options, left)
            if pool is not None and pool.num_bytes <= left:
                return pool
    return None
