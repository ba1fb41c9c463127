"""How many shards and blocks an order keeps open at once, what they weigh, and which order would fit a budget."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, gcd, sqrt

import numpy as np
from numpy.typing import NDArray

from epistream.loader.order.lanes import Lanes
from epistream.loader.order.plan import Plan
from epistream.units import count_text, distinct_sizes


def open_shards(plan: Plan, windows_in_flight: int, lanes: Iterable[int] | None = None) -> int:
    """Shards that are being drawn from at the same time, at most.

    Args:
        plan: the order.
        windows_in_flight: positions between the oldest batch in use and the newest being read, over all ranks: one
            global batch for a loader that reads one at a time, more with prefetching. They may lie in several
            segments of a lane, and each segment has one shard that the one before has not.
        lanes: the lanes that the node reads (`Schedule.lanes`); all when left out.
    """
    each = _open_in_lanes(plan, plan.lanes(), plan.parts, windows_in_flight)
    return _at_most_all(plan, int(each.sum() if lanes is None else each[list(lanes)].sum()))


def open_bytes(plan: Plan, windows_in_flight: int, lanes: Iterable[int] | None = None) -> int:
    """Bytes of the shards that `open_shards` counts, if they are the largest of the dataset."""
    return largest_bytes(plan, open_shards(plan, windows_in_flight, lanes))


def pool_slots(plan: Plan, windows_in_flight: int, lanes: Iterable[int] | None = None) -> int:
    """Blocks that are being drawn from at the same time, from their first window to their last, at most.

    u of each lane, and one more for each step of the pool that the windows in flight reach into: what these are on
    average, and five times what they differ by. Blocks are of 1 to `longest` windows, and the k shards of a segment
    are any. A block at a cut between lanes counts in both.

    Args:
        plan: the order; 0 for one that is not by blocks.
        windows_in_flight: as `open_shards` takes it.
        lanes: the lanes that the node reads (`Schedule.lanes`); all when left out.
    """
    if plan.blocks is None:
        return 0
    num_lanes = plan.num_lanes if lanes is None else len(list(lanes))
    most = num_lanes * plan.blocks.pool + blocks_in_flight(plan, windows_in_flight, num_lanes)
    return min(most, int(plan.num_blocks()[plan.per_shard > 0].sum()) + plan.num_lanes - 1)


def blocks_in_flight(plan: Plan, windows_in_flight: int, num_lanes: int) -> int:
    """Of `pool_slots`, those beside the u blocks of each of so many lanes; as many whatever u is."""
    assert plan.blocks is not None
    used = plan.per_shard > 0
    windows, blocks = plan.per_shard[used].astype(np.float64), plan.num_blocks()[used]
    num_blocks = int(blocks.sum())
    mean, items = plan.num_windows / num_blocks, max(-(-windows_in_flight // plan.num_lanes), 1) - 1
    entering = items / mean
    # The most that numbers of such a mean and such bounds can vary (Bhatia and Davis, Am. Math. Monthly 107, 2000).
    of_blocks = entering * (plan.blocks.longest - mean) * (mean - 1) / mean**2
    shards = max(min(plan.parts, len(windows)), items / windows.mean())
    of_shards = (items / windows.mean()) ** 2 / shards * float(np.mean((blocks - windows / mean) ** 2))
    # Lanes may begin a step all at once.
    entering = num_lanes * ceil(entering) + ceil(5 * sqrt(num_lanes * (max(of_blocks, 0.0) + of_shards)))
    return min(entering, num_lanes * items)


@dataclass(frozen=True)
class Fit:
    """An order that a budget can hold: its options, and what it keeps open."""

    lanes: int
    resident_shards: int
    open_shards: int
    open_bytes: int


def largest_fit(plan: Plan, budget_bytes: int, windows_in_flight: int) -> Fit | None:
    """The order with the most resident shards that a budget holds; None if not even one lane of two shards fits.

    The plan's number of lanes is kept if it can be, else the largest number that divides it: lanes that the number
    of nodes divided before are then likely to be so still. Declared nodes keep dividing it, and share the shards.
    """
    for num_lanes in range(plan.num_lanes, 0, -1):
        if plan.num_lanes % num_lanes or num_lanes % (plan.options.nodes or 1):
            continue
        lanes = plan.lanes() if num_lanes == plan.num_lanes else plan.lay_out(num_lanes)
        low, high = 2, max(2, int(_pieces(plan, lanes).max()))
        found = None
        while low <= high:
            parts = (low + high) // 2
            count = _open_on_a_node(plan, lanes, parts, windows_in_flight, plan.options.nodes)
            size = largest_bytes(plan, count)
            if size <= budget_bytes:
                found, low = Fit(num_lanes, num_lanes * parts, count, size), parts + 1
            else:
                high = parts - 1
        if found is not None:
            return found
    return None


def budget_advice(plan: Plan, budget_bytes: int, windows_in_flight: int) -> str | None:
    """What to tell a user whose cache cannot hold the order's open shards; None if it can.

    Shards that do not fit are fetched again and again, so this is worth saying before the first batch. All lanes
    are counted: as many nodes as lanes may share them, but each must be able to resume alone. Where the options declare
    a number of nodes, those of one of them are.
    """
    count = _open_on_a_node(plan, plan.lanes(), plan.parts, windows_in_flight, plan.options.nodes)
    needed = largest_bytes(plan, count)
    if needed <= budget_bytes:
        return None
    fit = largest_fit(plan, budget_bytes, windows_in_flight) if plan.options.shuffle else None
    allowed, wanted, fitting_bytes = distinct_sizes(budget_bytes, needed, fit.open_bytes if fit else needed)
    found = (
        f"cache budget: {allowed}, but the order draws from "
        f"{count_text(count, 'shard')} at once (lanes={plan.num_lanes}, "
        f"resident_shards={plan.resident_shards}), up to {wanted}."
    )
    if fit is None:
        fits_unshuffled = _fits_unshuffled(plan, budget_bytes, windows_in_flight)
        cure = "smaller shards" + (", or shuffle=False" if fits_unshuffled else "")
        return f"{found} No shuffled order fits: use a larger budget, {cure}."
    changed = f"lanes={fit.lanes}, " if fit.lanes != plan.num_lanes else ""
    fitting = f"{changed}resident_shards={fit.resident_shards} ({fitting_bytes})"
    if plan.options.global_batch is not None:
        fitting += " without global_batch, which raises it"
    return f"{found} Use {fitting}, or a larger budget."


def _fits_unshuffled(plan: Plan, budget_bytes: int, windows_in_flight: int) -> bool:
    """Whether the order would fit that a shuffled one gives up for."""
    if not plan.options.shuffle:
        return False
    options = replace(plan.options.in_storage_order(), resident_shards=None)
    unshuffled = Plan(plan.per_shard, plan.shard_bytes, plan.shard_episodes, options)
    return budget_advice(unshuffled, budget_bytes, windows_in_flight) is None


def bytes_of(plan: Plan, num_lanes: int, resident_shards: int, windows_in_flight: int, num_nodes: int) -> int:
    """As `open_bytes` for that of so many nodes which has most, of the plan's shards under another L and K."""
    lanes, parts = plan.lay_out(num_lanes), -(-resident_shards // num_lanes)
    return largest_bytes(plan, _open_on_a_node(plan, lanes, parts, windows_in_flight, num_nodes))


def _open_on_a_node(plan: Plan, lanes: Lanes, parts: int, windows_in_flight: int, num_nodes: int | None) -> int:
    """Open shards of the node that has most; of all lanes if nobody says how many nodes there are."""
    each = _open_in_lanes(plan, lanes, parts, windows_in_flight)
    # Node n reads the lanes that leave the same remainder as n by the greatest common divisor. Cuts make them differ.
    of_nodes = each.reshape(-1, gcd(lanes.num_lanes, num_nodes or 1)).sum(axis=0)
    return _at_most_all(plan, int(of_nodes.max()))


def _open_in_lanes(plan: Plan, lanes: Lanes, parts: int, windows_in_flight: int) -> NDArray[np.int64]:
    """(lanes,) open shards of each lane whose segments mix `parts` shards."""
    pieces = _pieces(plan, lanes)
    # By blocks, a lane reaches as far into its next segments as its pool does.
    items = -(-windows_in_flight // lanes.num_lanes) + plan.reach(lanes.num_lanes)
    inside = np.minimum(parts, pieces)
    segments = pieces - inside + 1
    # A lane's length, short of one window at most, so that the bound holds for the shorter ones.
    entering = np.where(segments > 1, -(-items * segments // (lanes.num_windows // lanes.num_lanes)), 0)
    found: NDArray[np.int64] = np.minimum(pieces, inside + entering)
    return found


def _pieces(plan: Plan, lanes: Lanes) -> NDArray[np.int64]:
    return lanes.counts(plan.shard_episodes).pieces


def _at_most_all(plan: Plan, count: int) -> int:
    return min(count, int(np.sum(plan.per_shard > 0)))


def largest_bytes(plan: Plan, count: int) -> int:
    """Bytes of so many shards, were they the largest."""
    used = np.sort(plan.shard_bytes[plan.per_shard > 0])
    return int(np.sum(used[max(len(used) - count, 0) :]))
