"""The order in a word: how varied its batches are and what its nodes fetch, for the job that runs, and what to set.

Windows of one episode resemble each other, so a batch of G windows of D distinct episodes is worth, at worst, as many
independent samples as a batch of D. What counts is D beside that of a full random permutation: where it is a share r of
that, the noise of a gradient is at worst that of a batch of r * G, larger by 1 / sqrt(r).

    ======  ==============  ====================================================================
    word    share r         noise of a gradient, at worst
    ======  ==============  ====================================================================
    good    0.9 or more     up to 5 % above that of a full permutation
    fair    0.5 or more     up to 41 % above it
    poor    below           more than half of the windows of a batch may tell nothing that is new
    ======  ==============  ====================================================================

N nodes that L is no multiple of share lanes: gcd(N, L) of them are enough to read all, so that each reads N / gcd(N, L)
times its share, and fetches as much. From twice on it is worth a warning: cuts between lanes alone cost less.
"""

from dataclasses import asdict, dataclass, replace
from math import ceil, gcd
from typing import Any, Literal

from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import Plan
from epistream.loader.order.quality import counted_distinct
from epistream.loader.order.working_set import bytes_of, largest_bytes
from epistream.units import distinct_sizes, parse_size

Word = Literal["good", "fair", "poor"]
GOOD, FAIR = 0.9, 0.5
MANY_FETCHES = 2.0
# Pools that are tried where an order by blocks is not good, and what one must bring to be worth its memory.
_LARGER_POOLS, _WORTH = (2, 4, 8), 1.02


@dataclass(frozen=True)
class Figures:
    """An order's L and K, and what they mean for a job.

    Attributes:
        lanes, resident_shards: L and K.
        distinct_share: distinct episodes in a global batch, of those that a full permutation gives it, in expectation.
        fetch_factor: what a node fetches in an epoch, of its share of the bytes.
        node_bytes: of the shards that a node draws from at a time, were they the largest.
        pool_blocks: of an order by blocks, those that it draws from at a time; its distinct episodes are counted.
    """

    lanes: int
    resident_shards: int
    distinct_share: float
    fetch_factor: float
    node_bytes: int
    pool_blocks: int | None = None

    def __str__(self) -> str:
        pool = "" if self.pool_blocks is None else f", pool_blocks={self.pool_blocks}"
        return f"lanes={self.lanes}, resident_shards={self.resident_shards}{pool}"


@dataclass(frozen=True)
class Judgement:
    """What an order is worth to a job.

    Attributes:
        word: for the distinct episodes of its batches.
        num_nodes, global_batch: the job.
        now: the order as it is.
        better: the order that declaring the job would choose; None if it need not or cannot be better.
        declared: the arguments of `OrderOptions` that declare it.
    """

    word: Word
    num_nodes: int
    global_batch: int
    now: Figures
    better: Figures | None
    declared: str | None

    @property
    def is_worth_a_warning(self) -> bool:
        """Whether the batches are poor, or nodes fetch twice their share that need not."""
        return self.word == "poor" or self._fetches_much

    @property
    def _fetches_much(self) -> bool:
        better = self.now if self.better is None else self.better
        return self.now.fetch_factor >= MANY_FETCHES and better.fetch_factor < self.now.fetch_factor

    @property
    def summary(self) -> str:
        """How it is."""
        now = self.now
        text = (
            f"shuffle {self.word}: a batch of {self.global_batch:,} windows holds {now.distinct_share:.2f} of the "
            f"distinct episodes that a full permutation gives it ({now})"
        )
        if now.fetch_factor >= MANY_FETCHES:
            shared = self.num_nodes // gcd(self.num_nodes, now.lanes)
            why = f"lanes={now.lanes} is no multiple of {self.num_nodes}" if shared > 1 else "there are few shards"
            text += f"; each of {self.num_nodes} nodes fetches {now.fetch_factor:.1f} times its share, as {why}"
        return text

    @property
    def advice(self) -> str | None:
        """What to set, what it brings and what it costs; None if nothing need be set."""
        better = self.better
        if better is None:
            return None
        brings = f"{better.distinct_share:.2f} of the distinct episodes"
        if self.num_nodes > 1:
            brings += f" and {better.fetch_factor:.1f} times its share for each node"
        then, now = distinct_sizes(better.node_bytes, self.now.node_bytes)
        return (
            f"OrderOptions({self.declared}), which is {better}, brings {brings}, and draws from up to {then} of shards "
            f"on a node at a time ({now} now). It is another order: states saved under this one do not fit it"
        )

    def __str__(self) -> str:
        return self.summary if self.advice is None else f"{self.summary}. {self.advice}"

    def to_dict(self) -> dict[str, Any]:
        """The fields and the sentences, as JSON holds them."""
        return asdict(self) | {"summary": self.summary, "advice": self.advice}


def judge(plan: Plan, global_batch: int, num_nodes: int) -> Judgement | None:
    """Judge an order for a job, from counts alone: milliseconds, and O(shards) memory; by blocks, from some batches.

    Args:
        plan: the order.
        global_batch: windows of a batch over all ranks.
        num_nodes: groups that positions are dealt to (`World.num_groups`).

    Returns:
        None for an order that is not shuffled: nobody asked for variety.
    """
    if not plan.options.shuffle:
        return None
    global_batch = min(global_batch, plan.num_windows)
    now = figures(plan, plan.num_lanes, plan.resident_shards, global_batch, num_nodes)
    better, declared = _better(plan, now, global_batch, num_nodes) or (None, None)
    return Judgement(word_for(now.distinct_share), num_nodes, global_batch, now, better, declared)


def word_for(distinct_share: float) -> Word:
    """The word for a share of the distinct episodes that a full permutation gives."""
    return "good" if distinct_share >= GOOD else "fair" if distinct_share >= FAIR else "poor"


def fetch_factor(plan: Plan, num_lanes: int, num_nodes: int) -> float:
    """What a node fetches in an epoch of so many lanes, of its share; no more than all of it."""
    pieces = int(plan.lay_out(num_lanes).counts(plan.shard_episodes).pieces.sum())
    return min(num_nodes // gcd(num_nodes, num_lanes) * pieces / plan.num_shards, float(num_nodes))


def figures(
    plan: Plan, lanes: int, resident_shards: int, global_batch: int, num_nodes: int, pool_blocks: int | None = None
) -> Figures:
    """What L and K mean for a job, and of an order by blocks its pool; the plan's if None."""
    mix, fetched = plan.episode_mix(lanes), fetch_factor(plan, lanes, num_nodes)
    size = bytes_of(plan, lanes, resident_shards, global_batch, num_nodes)
    if plan.blocks is None:
        share = mix.share(global_batch, max(2, -(-resident_shards // lanes)))
        return Figures(lanes, resident_shards, share, fetched, size)
    pool_blocks = max(pool_blocks or plan.pool_blocks, 2 * lanes)
    if (lanes, resident_shards, pool_blocks) != (plan.num_lanes, plan.resident_shards, plan.pool_blocks):
        plan = plan.with_options(_of_numbers(plan.options, lanes, max(resident_shards, 2 * lanes), pool_blocks))
    share = counted_distinct(plan, global_batch) / mix.distinct_permuted(global_batch)
    return Figures(lanes, resident_shards, share, fetched, size, plan.pool_blocks)


def _of_numbers(options: OrderOptions, lanes: int, resident_shards: int, pool_blocks: int) -> OrderOptions:
    """The options of an order by blocks with these numbers, whatever job they declare."""
    return replace(
        options,
        lanes=lanes,
        resident_shards=resident_shards,
        pool_blocks=pool_blocks,
        nodes=None,
        global_batch=None,
    )


def _better(plan: Plan, now: Figures, global_batch: int, num_nodes: int) -> tuple[Figures, str] | None:
    """What the order would be were the job declared, and how to declare it; None if it need not or cannot be better."""
    if now.distinct_share >= GOOD and now.fetch_factor < MANY_FETCHES:
        return None
    default = OrderOptions()
    lanes = now.lanes if now.lanes % num_nodes == 0 else default.lanes
    options = replace(
        plan.options,
        lanes=lanes,
        resident_shards=None,
        pool_blocks=None if plan.blocks is None else max(plan.pool_blocks, 2 * lanes),
        nodes=num_nodes if num_nodes > 1 else None,
        global_batch=global_batch,
        resident_bytes=int(plan.shard_bytes.sum()),
    )
    lanes, resident_shards = plan.lanes_and_residents(options)
    better = figures(plan, lanes, resident_shards, global_batch, num_nodes)
    for times in _LARGER_POOLS if plan.blocks is not None else ():
        if better.distinct_share >= GOOD:
            break
        larger = figures(plan, lanes, resident_shards, global_batch, num_nodes, times * plan.pool_blocks)
        if larger.distinct_share < better.distinct_share * _WORTH:
            break
        better = larger
    if better.distinct_share <= now.distinct_share and better.fetch_factor >= now.fetch_factor:
        return None
    names = ("lanes", "reshuffle_lanes", "nodes", "global_batch")
    told = [f"{name}={getattr(options, name)}" for name in names if getattr(options, name) != getattr(default, name)]
    room = largest_bytes(plan, resident_shards) / num_nodes
    if room > parse_size(default.resident_bytes):
        told.append(f'resident_bytes="{ceil(room / 2**30)}GiB"')
    if plan.blocks is not None:
        told.append(f'by="blocks", block_steps={plan.blocks.steps}, pool_blocks={better.pool_blocks}')
    return better, ", ".join(told)
