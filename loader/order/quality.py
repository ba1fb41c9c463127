"""How well an order shuffles and what it fetches, as numbers: computed from the manifest, without reading data."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.loader.order.anchors import Anchors
from epistream.loader.order.plan import Plan
from epistream.loader.order.schedule import Schedule
from epistream.loader.order.working_set import open_bytes, open_shards, pool_slots
from epistream.loader.order.world import World

# Batches that are counted: at each end, and between; fewer where they are large, and the middle ones next to each other
# where it takes many windows to reach one.
_ENDS = 100
_MIDDLE = 200
_COUNTED_WINDOWS = 1 << 22
# Of a judgement: lanes, places of the epoch that are looked at, and batches at each.
_JUDGED_LANES, _JUDGED_PLACES, _JUDGED_BATCHES = 8, 3, 4
_REACHED_WINDOWS = 1 << 25


@dataclass(frozen=True)
class OrderReport:
    """What an order costs and how varied its batches are, for one job.

    Attributes:
        num_windows, num_episodes, num_shards: those that the order draws from.
        num_bytes: of those shards.
        lanes, resident_shards: L and K.
        open_shards: shards in use at once over all nodes, with one global batch in flight, at most.
        open_bytes: their bytes, if they are the largest.
        by, block_steps, pool_blocks: what is permuted, and of an order by blocks their steps and how many are drawn
            from at a time; None of others.
        open_blocks: blocks in use at once over all nodes, with one global batch in flight, at most.
        global_batch: windows per batch over all ranks.
        distinct: mean distinct episodes in a global batch: in the first hundred, the middle and the last hundred, or
            fewer if they are large.
        distinct_permuted: the same for a full random permutation of the epoch, in expectation.
        distinct_residents: the same for uniform draws from the resident shards, in expectation.
        fetch_bytes: bytes that all nodes together fetch in an epoch that finds nothing in memory, at most.
        fetch_bytes_per_node: bytes that each node fetches. A shard at a cut between lanes is counted in both, since
            they need it at different times, unless the node keeps all its shards.
        first_batch_bytes: bytes of the shards that the first batch draws from, for each node.
    """

    num_windows: int
    num_episodes: int
    num_shards: int
    num_bytes: int
    lanes: int
    resident_shards: int
    open_shards: int
    open_bytes: int
    global_batch: int
    distinct: tuple[float, float, float]
    distinct_permuted: float
    distinct_residents: float
    fetch_bytes: int
    fetch_bytes_per_node: tuple[int, ...]
    first_batch_bytes: tuple[int, ...]
    by: str = "windows"
    block_steps: int | None = None
    pool_blocks: int | None = None
    open_blocks: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the ratios that matter, as JSON holds them."""
        first, middle, last = (value / self.distinct_permuted for value in self.distinct)
        return asdict(self) | {"ratio_to_permutation": {"first": first, "middle": middle, "last": last}}


def report(plan: Plan, anchors: Anchors, batch_size: int, num_nodes: int, ranks_per_node: int) -> OrderReport:
    """Examine the first epoch of an order.

    Raises:
        OptionError: if the job cannot be, for example a global batch larger than the epoch.
    """
    worlds = [World.of(node * ranks_per_node, num_nodes * ranks_per_node, ranks_per_node) for node in range(num_nodes)]
    schedules = [Schedule(plan.num_windows, plan.num_lanes, 0, 0, 0, world, batch_size) for world in worlds]
    global_batch = batch_size * num_nodes * ranks_per_node
    used = plan.per_shard > 0
    windows = anchors.windows_per_episode
    fetched = [_fetched(plan, schedule) for schedule in schedules]
    at_once = open_shards(plan, global_batch)
    return OrderReport(
        num_windows=plan.num_windows,
        num_episodes=int(np.sum(windows > 0)),
        num_shards=int(np.sum(used)),
        num_bytes=int(np.sum(plan.shard_bytes[used])),
        lanes=plan.num_lanes,
        resident_shards=plan.resident_shards,
        open_shards=at_once,
        open_bytes=open_bytes(plan, global_batch),
        global_batch=global_batch,
        distinct=distinct_by_third(plan, anchors, global_batch),
        distinct_permuted=expected_distinct(windows, global_batch),
        distinct_residents=_expected_of_residents(plan, anchors, global_batch),
        fetch_bytes=sum(fetched),
        fetch_bytes_per_node=tuple(fetched),
        first_batch_bytes=tuple(_first_batch(plan, global_batch, num_nodes)),
        **_by_blocks(plan, global_batch),
    )


def _by_blocks(plan: Plan, global_batch: int) -> dict[str, Any]:
    if plan.blocks is None:
        return {}
    slots = pool_slots(plan, global_batch)
    return {
        "by": "blocks", "block_steps": plan.blocks.steps, "pool_blocks": plan.pool_blocks, "open_blocks": slots,
    }  # fmt: skip


def expected_distinct(windows_per_episode: NDArray[np.int64], batch: int) -> float:
    """Distinct episodes among `batch` windows drawn at random without repetition, in expectation."""
    counts, episodes = np.unique(windows_per_episode[windows_per_episode > 0], return_counts=True)
    total = int(np.sum(counts * episodes))
    batch = min(batch, total)
    # An episode of n windows is missed with probability C(N - n, G) / C(N, G), a product over the n or the G.
    missed = []
    for count in counts.tolist():
        fewer, more = sorted((count, batch))
        steps = np.arange(fewer)
        missed.append(np.prod(np.maximum(total - more - steps, 0) / (total - steps)))
    return float(np.sum(episodes * (1 - np.array(missed))))


def distinct_by_third(plan: Plan, anchors: Anchors, global_batch: int, epoch: int = 0) -> tuple[float, float, float]:
    """Mean distinct episodes per global batch: in the first hundred batches, the middle and the last hundred.

    Fewer are counted where they are large.
    """
    num_batches = plan.num_windows // global_batch
    most = max(_COUNTED_WINDOWS // (4 * global_batch), 4)
    ends = min(_ENDS, most, num_batches)
    resident_windows = plan.resident_shards * plan.num_windows // plan.num_shards
    places = min(_MIDDLE, 2 * most, max(_REACHED_WINDOWS // resident_windows, 2))
    first_of = np.linspace(0.2 * num_batches, 0.8 * num_batches, places, endpoint=False).astype(np.int64)
    each = np.arange(-(-min(_MIDDLE, 2 * most) // places))
    middle = np.unique(np.minimum(first_of[:, None] + each, num_batches - 1))
    parts = (np.arange(ends), middle, np.arange(num_batches - ends, num_batches))
    first, between, last = (
        float(np.mean(distinct_episodes(plan, anchors, global_batch, part, epoch))) for part in parts
    )
    return first, between, last


def distinct_episodes(
    plan: Plan, anchors: Anchors, global_batch: int, batches: NDArray[np.int64], epoch: int = 0
) -> NDArray[np.int64]:
    """Distinct episodes in each of the global batches numbered `batches`: (n,) int64."""
    order = plan.epoch(epoch)
    found = []
    for batch in batches.tolist():
        shard, k = order.windows(np.arange(batch * global_batch, (batch + 1) * global_batch))
        found.append(len(np.unique(anchors.locate(shard, k)[0])))
    return np.array(found, np.int64)


def counted_distinct(plan: Plan, global_batch: int) -> float:
    """Distinct episodes in a global batch away from the ends of an epoch, counted in a few batches of a few lanes.

    For orders of which no closed form is known. It takes what it takes to reach three batches of the first epoch.
    """
    order, batches = plan.epoch(0), max(plan.num_windows // global_batch, 1)
    step = -(-plan.num_lanes // _JUDGED_LANES)
    resident_windows = plan.resident_shards * plan.num_windows // plan.num_shards
    places = max(min(_JUDGED_PLACES, _REACHED_WINDOWS // 8 // resident_windows), 1)
    found = []
    for place in range(1, places + 1):
        first = batches * place // (places + 1)
        for batch in range(first, min(first + _JUDGED_BATCHES, batches)):
            positions = np.arange(batch * global_batch, min((batch + 1) * global_batch, plan.num_windows))
            positions = positions[positions % plan.num_lanes % step == 0]
            if len(positions):
                found.append(plan.num_distinct(*order.windows(positions)))
    return float(np.mean(found)) * plan.num_lanes / len(range(0, plan.num_lanes, step))


def _expected_of_residents(plan: Plan, anchors: Anchors, global_batch: int) -> float:
    """Distinct episodes in uniform draws from shards of average size, as many as are resident."""
    pieces = [plan.lanes().num_pieces(lane) for lane in range(plan.num_lanes)]
    used = plan.per_shard > 0
    resident = min(sum(min(count, plan.parts) for count in pieces), int(np.sum(used)))
    episodes = max(round(int(np.sum(anchors.episodes_per_shard)) * resident / int(np.sum(used))), 1)
    each = max(round(plan.num_windows / max(int(np.sum(anchors.episodes_per_shard)), 1)), 1)
    return expected_distinct(np.full(episodes, each, np.int64), global_batch)


def _fetched(plan: Plan, schedule: Schedule) -> int:
    shards = np.concatenate([plan.lanes().pieces(lane).shard for lane in schedule.lanes])
    distinct = np.unique(shards)
    if open_shards(plan, schedule.global_batch, schedule.lanes) >= len(distinct):
        shards = distinct
    return int(np.sum(plan.shard_bytes[shards]))


def _first_batch(plan: Plan, global_batch: int, num_nodes: int) -> list[int]:
    positions = np.arange(global_batch)
    shard, _ = plan.epoch(0).windows(positions)
    nodes = (shard[positions % num_nodes == node] for node in range(num_nodes))
    return [int(np.sum(plan.shard_bytes[np.unique(shards)])) for shards in nodes]
