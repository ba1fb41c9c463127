"""Distinct episodes per batch of 64 when a tenth of the data fits into memory, against a full permutation.

    python benchmarks/shuffle_quality.py [--share 0.1] [--epochs 3] [--jobs | --blocks] [--json]

For made-up datasets: the largest order that the budget holds, with its segments in flight counted. The columns are
the mean number of distinct episodes over the first hundred, two hundred middle and the last hundred batches, divided
by that of a full random permutation of the dataset, and by that of uniform draws from as many shards as are resident.

With --jobs: a million episodes of 400 steps, ten a shard, for 1, 8 and 128 nodes of 8 ranks with batches of 32: the
default order, and the one that declaring the job makes. Distinct episodes in the middle of the epoch, counted and by
the closed form, what a node fetches and draws from, and the processor time of deciding a rank's batch.

With --blocks: orders by blocks of 6,000 and of 50 episodes of 400 steps, on one node in 8 lanes. Distinct episodes and
distinct blocks of every batch of 64, of those of a permutation: over all epochs, and in the first and last 20 batches
of each. Slots are the blocks that a node keeps with one batch in flight, and those that were in use at once.
"""

import argparse
import json
import time
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from epistream.loader.order.anchors import Anchors
from epistream.loader.order.judgement import judge
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import Plan
from epistream.loader.order.quality import distinct_by_third, expected_distinct
from epistream.loader.order.schedule import Schedule
from epistream.loader.order.working_set import largest_fit, pool_slots
from epistream.loader.order.world import World

BATCH = 64
# Episodes, episodes per shard, steps per episode.
DATASETS = [
    (6000, 20, 300),
    (6000, 10, 100),
    (6000, 5, 100),
    (6000, 1, 200),
    (1000, 5, 100),
    (300, 2, 400),
    (300, 1, 400),
]
# Episodes and episodes per shard, all of 400 steps; steps of a block and blocks of the pool.
DATASETS_OF_BLOCKS = [(6000, 10), (6000, 1), (50, 5)]
BLOCKS = [(8, 104), (8, 128), (8, 256), (30, 64), (30, 96), (30, 112), (30, 128)]


def make_up(num_episodes: int, per_shard: int, steps: int, ragged: bool = True) -> SimpleNamespace:
    """A manifest of episodes of `steps` steps; of ragged ones, from half to one and a half times as many."""
    episode = np.arange(num_episodes)
    length = np.random.default_rng(0).integers(steps // 2, steps * 3 // 2 + 1, num_episodes)
    if not ragged:
        length[:] = steps
    shard = episode // per_shard
    size = np.bincount(shard, weights=length).astype(np.int64) * 30_000
    return SimpleNamespace(
        url="made up",
        shard_url=range(len(size)),
        shard_bytes=size,
        index_bytes=size // 1000,
        episode_shard=shard,
        episode_in_shard=episode % per_shard,
        episode_length=length,
        episode_split=np.zeros(num_episodes, np.uint8),
        splits=("all",),
        valid_ranges=(np.arange(num_episodes + 1), np.stack([length * 0, length], 1)),
    )


def measure(num_episodes: int, per_shard: int, steps: int, share: float, epochs: int) -> dict[str, float]:
    """The order that fits `share` of the bytes of a dataset, and how varied its batches are."""
    dataset = make_up(num_episodes, per_shard, steps)
    anchors = Anchors(dataset, None, (0, 0), drop_incomplete=False)  # type: ignore[arg-type]
    budget = int(share * int((dataset.shard_bytes + dataset.index_bytes).sum()))
    fit = largest_fit(Plan.of(anchors, dataset, OrderOptions()), budget, BATCH)  # type: ignore[arg-type]
    if fit is None:
        raise SystemExit(f"{num_episodes} episodes, {per_shard} per shard: nothing fits {share:.0%}")
    options = OrderOptions(lanes=fit.lanes, resident_shards=fit.resident_shards)
    plan = Plan.of(anchors, dataset, options)  # type: ignore[arg-type]
    thirds = np.mean([distinct_by_third(plan, anchors, BATCH, epoch) for epoch in range(epochs)], axis=0)
    permuted = expected_distinct(anchors.windows_per_episode, BATCH)
    resident = expected_distinct(np.full(fit.resident_shards * per_shard, steps), BATCH)
    return {
        "episodes": num_episodes, "per_shard": per_shard, "lanes": fit.lanes, "K": fit.resident_shards,
        "open": fit.open_shards, "shards": len(dataset.shard_bytes),
        "first_of_permutation": thirds[0] / permuted, "middle_of_permutation": thirds[1] / permuted,
        "last_of_permutation": thirds[2] / permuted, "first_of_residents": thirds[0] / resident,
        "middle_of_residents": thirds[1] / resident, "last_of_residents": thirds[2] / resident,
    }  # fmt: skip


def measure_blocks(num_episodes: int, per_shard: int, sizes: tuple[int, int], epochs: int) -> dict[str, float]:
    """How varied the batches of an order by blocks are, against a full permutation of windows."""
    block_steps, pool_blocks = sizes
    dataset = make_up(num_episodes, per_shard, 400, ragged=False)
    anchors = Anchors(dataset, None, (0, 0), drop_incomplete=False)  # type: ignore[arg-type]
    options = OrderOptions(by="blocks", block_steps=block_steps, pool_blocks=pool_blocks)
    plan = Plan.of(anchors, dataset, options)  # type: ignore[arg-type]
    whole = plan.num_windows // BATCH * BATCH
    positions = np.arange(whole)
    shares, most_open = [], 0
    blocks_of_episode = -(-400 // block_steps)
    sizes_of_blocks = np.minimum(400 - np.arange(blocks_of_episode) * block_steps, block_steps)
    permuted = (anchors.windows_per_episode, np.tile(sizes_of_blocks, num_episodes))
    for epoch in range(epochs):
        episode, _, step = anchors.locate(*plan.epoch(epoch).windows(positions))
        block = episode * blocks_of_episode + step // block_steps
        for found, windows in zip((episode, block), permuted, strict=True):
            ranked = np.sort(found.reshape(-1, BATCH), axis=1)
            distinct = (np.diff(ranked, axis=1) > 0).sum(axis=1) + 1
            parts = distinct, distinct[:20], distinct[-20:]
            shares.append([part.mean() / expected_distinct(windows, BATCH) for part in parts])
        most_open = max(most_open, blocks_in_use(positions // BATCH, block))
    episodes, blocks = np.mean(shares[::2], axis=0), np.mean(shares[1::2], axis=0)
    return {
        "episodes": num_episodes, "per_shard": per_shard, "K": plan.resident_shards, "block_steps": block_steps,
        "pool_blocks": pool_blocks, "slots": pool_slots(plan, BATCH), "in_use": most_open,
        "episodes_all": episodes[0], "episodes_first": episodes[1], "episodes_last": episodes[2],
        "blocks_all": blocks[0], "blocks_first": blocks[1], "blocks_last": blocks[2],
    }  # fmt: skip


def blocks_in_use(batch: NDArray[np.int64], block: NDArray[np.int64]) -> int:
    """The most blocks of which one batch, or some before and some behind it, hold windows."""
    first, last = np.full(block.max() + 1, batch[-1] + 1), np.zeros(block.max() + 1, np.int64)
    np.minimum.at(first, block, batch)
    np.maximum.at(last, block, batch)
    enters = np.bincount(first, minlength=batch[-1] + 2)[: batch[-1] + 1]
    return int((np.cumsum(enters) - np.cumsum(np.bincount(last + 1, minlength=batch[-1] + 2))[: batch[-1] + 1]).max())


def measure_jobs() -> list[dict[str, float | str]]:
    """The default order and the declared one for small and large jobs over one dataset."""
    dataset = make_up(1_000_000, 10, 400)
    anchors = Anchors(dataset, None, (0, 0), drop_incomplete=False)  # type: ignore[arg-type]
    rows: list[dict[str, float | str]] = []
    for nodes in (1, 8, 128):
        global_batch = nodes * 8 * 32
        permuted = expected_distinct(anchors.windows_per_episode, global_batch)
        for name, options in (
            ("default", OrderOptions()),
            ("declared", OrderOptions(nodes=nodes, global_batch=global_batch)),
        ):
            plan = Plan.of(anchors, dataset, options)  # type: ignore[arg-type]
            found = judge(plan, global_batch, nodes)
            if found is None:
                raise SystemExit("an order that is shuffled has a judgement")
            rows.append({
                "nodes": nodes, "order": name, "L": plan.num_lanes, "K": plan.resident_shards, "word": found.word,
                "counted": distinct_by_third(plan, anchors, global_batch)[1] / permuted,
                "closed_form": found.now.distinct_share, "fetch_factor": found.now.fetch_factor,
                "node_GiB": found.now.node_bytes / 2**30, "batch_cpu_ms": batch_cpu_ms(plan, nodes),
            })  # fmt: skip
    return rows


def batch_cpu_ms(plan: Plan, nodes: int) -> float:
    """Processor time of deciding a batch of 32 of one of 8 ranks of a node, in the middle of the epoch."""
    schedule = Schedule(plan.num_windows, plan.num_lanes, 0, 0, 0, World.of(0, nodes * 8, 8), 32)
    order, middle, count = plan.epoch(0), schedule.num_batches // 2, min(3000, schedule.num_batches // 3)
    order.windows(schedule.positions(middle - 1)[0])
    start = time.process_time()
    for batch in range(middle, middle + count):
        order.windows(schedule.positions(batch)[0])
    return (time.process_time() - start) / count * 1e3


def main() -> None:
    """Print a line for each dataset, or for each job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--jobs", action="store_true")
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.jobs or arguments.blocks:
        found = (
            measure_jobs()
            if arguments.jobs
            else [measure_blocks(*shape, sizes, arguments.epochs) for shape in DATASETS_OF_BLOCKS for sizes in BLOCKS]
        )
        if arguments.json:
            print(json.dumps(found, indent=1))
            return
        width = max(map(len, found[0]))
        print(*(f"{key:>{width}}" for key in found[0]))
        for row in found:
            print(
                *(f"{value:{width}.3f}" if isinstance(value, float) else f"{value:>{width}}" for value in row.values())
            )
        return
    rows = [measure(*shape, arguments.share, arguments.epochs) for shape in DATASETS]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'episodes':>8} {'/shard':>6} {'L':>3} {'K':>4} {'open':>9}   of a permutation        of the residents")
    for row in rows:
        ratios = [f"{value:.3f}" for key, value in row.items() if "_of_" in key]
        where = (
            f"{row['episodes']:8} {row['per_shard']:6} {row['lanes']:3} {row['K']:4} {row['open']:4}/{row['shards']:4}"
        )
        print(where, "  ", *ratios[:3], "    ", *ratios[3:])


if __name__ == "__main__":
    main()
