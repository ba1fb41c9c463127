"""Windows/s of processes that read by blocks from a pool of decoded frames, beside the same without one.

    python benchmarks/blocks_reading.py FOLDER_OF_EPISODES [--copies 100] [--codec jpeg] [--blocks 8 32] [--steps 1 2 4]

Packs copies of the episodes once. Each process has two readers: one draws windows at random and decodes each, the other
draws them from a pool of blocks, in an order made here: blocks follow each other at random, and the windows of each lie
evenly over the time in which as many blocks begin as the pool has. All processes read with the one, then with the
other, in turns; read the ratios, of which the table has the median and the quartiles over the turns.
"""

import argparse
import multiprocessing
import shutil
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import epistream as es
from epistream.cache.node import NodeCache
from epistream.loader.frames.block_pool_plan import PoolPlan, pooled_cameras
from epistream.loader.frames.frames import FrameOptions
from epistream.loader.order.window import Window
from epistream.loader.reading.batch_layout import BatchLayout
from epistream.loader.reading.reader import BatchWindows, EpisodeReader, ReaderOptions
from epistream.sharding.format.opened_dataset import Dataset

_PATIENCE_S = 120
Order = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]


def by_blocks(dataset: Dataset, block_steps: int, pool_blocks: int, seed: int) -> Order:
    """Episode, step and whether it ends its block, of each window of an epoch that rolls through a pool of blocks."""
    rng = np.random.default_rng(seed)
    lengths = dataset.episode_length
    episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(len(episode)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    _, block = np.unique(np.stack([episode, step // block_steps]), axis=1, return_inverse=True)
    block = block.reshape(-1)
    begin = rng.permutation(block.max() + 1).astype(float)[block]
    # The windows of a block at random, one in each of as many equal parts of its time.
    turn = np.lexsort((rng.random(len(block)), block))
    count = np.bincount(block)
    part = np.empty(len(block))
    part[turn] = np.arange(len(block)) - np.repeat(np.cumsum(count) - count, count)
    order = np.argsort(begin + pool_blocks * (part + rng.random(len(block))) / count[block])
    last = np.zeros(len(count), np.int64)
    last[block[order]] = np.arange(len(order))
    ends = np.zeros(len(order), np.bool_)
    ends[last] = True
    return episode[order], step[order], ends


def at_random(dataset: Dataset, seed: int) -> Order:
    """As `by_blocks`, all windows permuted."""
    episode, step, ends = by_blocks(dataset, 1, 1, seed)
    order = np.random.default_rng((seed, 1)).permutation(len(step))
    return episode[order], step[order], ends & False


class Side:
    """A reader with the batches of one process, of epoch after epoch."""

    def __init__(
        self, args: argparse.Namespace, dataset: Dataset, num_steps: int, cache: NodeCache, block: int
    ) -> None:
        self.args, self.dataset, self.block = args, dataset, block
        features = {name: feature for name, feature in dataset.features.items() if feature.kind == "frames"}
        window, frames = Window(obs=range(1 - num_steps, 1)), FrameOptions(decode="per_read")
        self.plan = None
        if block:
            cameras = tuple(pooled_cameras(features, window, frames, block))
            slack = -(-2 * args.processes * args.batch_size // block)
            self.plan = PoolPlan(cameras, block, args.pool + slack, f"{num_steps}")
        self.reader = EpisodeReader(dataset, features, window, cache, ReaderOptions(pool=self.plan))
        self.out = BatchLayout.plan(features, window, args.batch_size).allocate()
        self.epoch, self.left = 0, []

    def read(self, rank: int) -> None:
        """The next batch of a rank."""
        size = self.args.batch_size * self.args.processes
        while not self.left:
            if self.block:
                order = by_blocks(self.dataset, self.block, self.args.pool, self.epoch)
            else:
                order = at_random(self.dataset, self.epoch)
            self.epoch += 1
            self.left = [tuple(each[at : at + size] for each in order) for at in range(0, len(order[0]) - size, size)]
        episode, step, ends = (each[rank :: self.args.processes] for each in self.left.pop(0))
        dataset, zeros = self.dataset, np.zeros(len(step), np.int64)
        shard, within = dataset.episode_shard[episode], dataset.episode_in_shard[episode]
        self.reader.read(BatchWindows(shard, episode, within, step, zeros.astype(np.bool_), zeros, ends), self.out)


def run(rank: int, args: argparse.Namespace, case: tuple[str, int, int], pipe: Connection, together: Barrier) -> None:
    """One process: reads in turns with either side, and tells how long each took."""
    folder, num_steps, block = case
    dataset = es.open_dataset(folder)
    with NodeCache(es.CacheOptions(directory=f"{args.cache}/{num_steps}-{block}")) as cache:
        sides = [Side(args, dataset, num_steps, cache, each) for each in (0, block)]
        took: list[list[float]] = [[], []]
        for turn in range(args.turns + 1):
            for number in ((0, 1), (1, 0))[turn % 2]:
                side = sides[number]
                # A first turn fills the pool, and is not counted.
                filling = 3 * args.pool * block // args.batch_size // args.processes
                batches = args.batches if turn or not number else filling
                together.wait(_PATIENCE_S)
                started, cpu = time.perf_counter(), time.process_time()
                for _ in range(batches):
                    side.read(rank)
                cpu_s = time.process_time() - cpu
                together.wait(_PATIENCE_S)
                if turn:
                    took[number].append(cpu_s if args.cpu else time.perf_counter() - started)
        plan = sides[1].plan
        assert plan is not None
        pipe.send((took, plan.counts.stats(), plan.num_bytes))
        for side in sides:
            side.reader.close()


def measure(args: argparse.Namespace, case: tuple[str, int, int]) -> tuple[NDArray[Any], list[Any]]:
    """Seconds of each side and turn, (2, turns), and what became of frames."""
    context = multiprocessing.get_context("forkserver")
    together = context.Barrier(args.processes)
    pipes = [context.Pipe() for _ in range(args.processes)]
    processes = [
        context.Process(target=run, args=(rank, args, case, pipes[rank][1], together), daemon=True)
        for rank in range(args.processes)
    ]
    for process in processes:
        process.start()
    answers = []
    for ours, _ in pipes:
        if not ours.poll(20 * _PATIENCE_S):
            raise TimeoutError(f"no answer of a process in {20 * _PATIENCE_S} s, wanted its times.")
        answers.append(ours.recv())
    for process in processes:
        process.join(_PATIENCE_S)
    return np.mean([answer[0] for answer in answers], axis=0), answers


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, default=100)
    parser.add_argument("--codec", default=None, help="of the shards; as recorded if left out")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--pool", type=int, default=128)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=8, help="of a turn and process")
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--cpu", action="store_true", help="compare seconds of the processor instead")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse()
    table = Table("observation steps", "block", "windows/s", "with the pool", "ratio", "frames decoded/step", "pool GB")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir="/dev/shm") as args.cache:
        files = []
        for copy in range(args.copies):
            for number, file in enumerate(sorted(args.folder.glob("*.hdf5"))):
                files.append(Path(folder) / f"{copy:03d}-{number}.hdf5")
                shutil.copy(file, files[-1])
        packed = f"{folder}/packed"
        es.pack(files, packed, **({"codec": args.codec} if args.codec else {}), shard_size="8MiB")
        for num_steps in args.steps:
            for block in args.blocks:
                seconds, answers = measure(args, (packed, num_steps, block))
                low, ratio, high = np.quantile(seconds[0] / seconds[1], [0.25, 0.5, 0.75])
                windows = args.batches * args.batch_size * (1 if args.cpu else args.processes)
                stats = [answer[1] for answer in answers]
                decoded = sum(each.num_decoded for each in stats) / sum(each.num_taken for each in stats) * num_steps
                table.add_row(
                    f"{num_steps}",
                    f"{block}",
                    *(f"{windows / np.median(each):,.0f}" for each in seconds),
                    f"{ratio:.2f} ({low:.2f} to {high:.2f})",
                    f"{decoded:.2f}; {sum(each.num_again for each in stats)} again, "
                    f"{sum(each.num_unpooled for each in stats)} alone",
                    f"{answers[0][2] / 1e9:.2f}",
                )
    Console(width=132).print(table)


if __name__ == "__main__":
    main()
