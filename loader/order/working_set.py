"""How many shards an order keeps open at once, what they weigh, and which order would fit a budget."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd

import numpy as np

from epistream.loader.order.lanes import Lanes
from epistream.loader.order.plan import Plan
from epistream.units import size_text


def open_shards(plan: Plan, windows_in_flight: int, lanes: Iterable[int] | None = None) -> int:
    """Shards that are being drawn from at the same time, at most.

    Args:
        plan: the order.
        windows_in_flight: positions between the oldest batch in use and the newest being read, over all ranks: one
            global batch for a loader that reads one at a time, more with prefetching. They may lie in several
            segments of a lane, and each segment has one shard that the one before has not.
        lanes: the lanes that the node reads (`Schedule.lanes`); all when left out.
    """
    return _open_shards(plan, plan.lanes(), plan.parts, windows_in_flight, lanes)


def open_bytes(plan: Plan, windows_in_flight: int, lanes: Iterable[int] | None = None) -> int:
    """Bytes of the shards that `open_shards` counts, if they are the largest of the dataset."""
    return largest_bytes(plan, open_shards(plan, windows_in_flight, lanes))


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
        which = lanes_of_node(num_lanes, plan.options.nodes)
        lanes = plan.lanes() if num_lanes == plan.num_lanes else plan.lay_out(num_lanes)
        low, high = 2, max(2, *(lanes.num_pieces(lane) for lane in range(num_lanes)))
        found = None
        while low <= high:
            parts = (low + high) // 2
            count = _open_shards(plan, lanes, parts, windows_in_flight, which)
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
    which = lanes_of_node(plan.num_lanes, plan.options.nodes)
    needed = open_bytes(plan, windows_in_flight, which)
    if needed <= budget_bytes:
        return None
    found = (
        f"cache budget: {size_text(budget_bytes)}, but the order draws from "
        f"{open_shards(plan, windows_in_flight, which)} shards at once (lanes={plan.num_lanes}, "
        f"resident_shards={plan.resident_shards}), up to {size_text(needed)}."
    )
    fit = largest_fit(plan, budget_bytes, windows_in_flight) if plan.options.shuffle else None
    if fit is None:
        cure = "smaller shards" + (", or shuffle=False" if plan.options.shuffle else "")
        return f"{found} No shuffled order fits: use a larger budget, {cure}."
    changed = f"lanes={fit.lanes}, " if fit.lanes != plan.num_lanes else ""
    fitting = f"{changed}resident_shards={fit.resident_shards} ({size_text(fit.open_bytes)})"
    if plan.options.global_batch is not None:
        fitting += " without global_batch, which raises it"
    return f"{found} Use {fitting}, or a larger budget."


def lanes_of_node(num_lanes: int, num_nodes: int | None) -> range:
    """The lanes that one of so many nodes reads; all if nobody says how many nodes there are."""
    return range(0, num_lanes, gcd(num_lanes, num_nodes or 1))


def bytes_of(plan: Plan, num_lanes: int, resident_shards: int, windows_in_flight: int, num_nodes: int) -> int:
    """As `open_bytes` for one of so many nodes, of the plan's shards under another L and K."""
    lanes, parts = plan.lay_out(num_lanes), -(-resident_shards // num_lanes)
    which = lanes_of_node(num_lanes, num_nodes)
    return largest_bytes(plan, _open_shards(plan, lanes, parts, windows_in_flight, which))


def _open_shards(plan: Plan, lanes: Lanes, parts: int, windows_in_flight: int, which: Iterable[int] | None) -> int:
    items = -(-windows_in_flight // lanes.num_lanes)
    total = 0
    for lane in range(lanes.num_lanes) if which is None else which:
        num_pieces = lanes.num_pieces(lane)
        inside = min(parts, num_pieces)
        segments = num_pieces - inside + 1
        entering = -(-items * segments // lanes.length(lane)) if segments > 1 else 0
        total += min(num_pieces, inside + entering)
    return min(total, int(np.sum(plan.per_shard > 0)))


def largest_bytes(plan: Plan, count: int) -> int:
    """Bytes of so many shards, were they the largest."""
    used = np.sort(plan.shard_bytes[plan.per_shard > 0])
    return int(np.sum(used[max(len(used) - count, 0) :]))
