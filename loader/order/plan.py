"""The plan: which window stands at which position of an epoch, as arithmetic over window counts per shard.

Every input must be equal on all ranks, and none of them is the topology: see ``docs/order.md``.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import OptionError
from epistream.lazy import lazy
from epistream.loader.order.blocks import BlockSizes
from epistream.loader.order.epoch import EpochOrder, SequentialEpoch, ShuffledEpoch
from epistream.loader.order.lanes import Lanes, Pieces
from epistream.loader.order.options import LANE_BLOCKS, OrderOptions
from epistream.loader.order.random_integers import Purpose, permutation
from epistream.loader.order.segments import ShardUse
from epistream.loader.order.spread import AverageEpisodes, Episodes
from epistream.loader.order.variety import EpisodeMix
from epistream.units import parse_size

if TYPE_CHECKING:
    from epistream.loader.order.anchors import Anchors
    from epistream.sharding.manifest.opened_dataset import Dataset

# Raised whenever the same inputs would give another order: saved states of other versions are refused.
ORDER_VERSION = 1
# The default K holds as many episodes as keep a batch of 64 varied, within memory that a training node can spare.
_DEFAULT_EPISODES = 256
_DEFAULT_BYTES = 4 * 2**30
# Distinct episodes in a declared global batch, of those that a full permutation gives it. See `judgement` for why 0.9
# is good; the rest is for what the closed form does not know (`benchmarks/shuffle_quality.py` counts).
WANTED_SHARE = 0.95


class Portion(NamedTuple):
    """What falls to one dataset of the windows at some positions of an order.

    Attributes:
        dataset: its number.
        epoch: the dataset's own.
        positions: (n,) in that epoch.
        rows: which of the positions that were asked for these are: (n,), or a slice.
    """

    dataset: int
    epoch: int
    positions: NDArray[np.int64]
    rows: NDArray[np.int64] | slice


class Plan:
    """The order of all epochs of one dataset, window and set of options. Memory O(shards); picklable; no I/O.

    Args:
        per_shard: (S,) windows of each shard.
        shard_bytes: (S,) bytes of each shard.
        shard_episodes: (S,) episodes of each shard that have windows.
        options: what the user chose.
        runs: the windows in dataset order, where that is not shard after shard; used without shuffling.
        episodes: which windows are of one episode; without it, a shard's are taken to be of equal length.

    Raises:
        OptionError: if there is no window at all.
    """

    def __init__(
        self,
        per_shard: NDArray[np.int64],
        shard_bytes: NDArray[np.int64],
        shard_episodes: NDArray[np.int64],
        options: OrderOptions,
        runs: Pieces | None = None,
        episodes: Episodes | None = None,
    ) -> None:
        self.num_windows = int(np.sum(per_shard))
        if self.num_windows == 0:
            raise OptionError(
                f"plan: 0 windows in {len(per_shard)} shards, wanted at least 1. "
                "Choose another split, or keep incomplete windows: Window(drop_incomplete=False)."
            )
        self.options = options
        self.per_shard, self.shard_bytes, self.shard_episodes = per_shard, shard_bytes, shard_episodes
        self._episodes = AverageEpisodes(per_shard, shard_episodes) if episodes is None else episodes
        self._runs = runs
        self.num_lanes, self.resident_shards = self.lanes_and_residents(options) if options.shuffle else (1, 1)
        self.blocks, self.pool_blocks = self._blocks()
        self._lanes = None if options.reshuffle_lanes else self.lay_out(self.num_lanes)

    @classmethod
    def of(cls, anchors: "Anchors", dataset: "Dataset", options: OrderOptions) -> "Plan":
        """The plan of a dataset's anchors."""
        runs = None if options.shuffle else anchors.runs()
        # A cache entry is a shard with its index.
        sizes = dataset.shard_bytes + dataset.index_bytes
        return cls(anchors.per_shard, sizes, anchors.episodes_per_shard, options, runs, anchors)

    def with_options(self, options: OrderOptions) -> "Plan":
        """The order that other options would make of the same windows, both shuffled."""
        return Plan(self.per_shard, self.shard_bytes, self.shard_episodes, options, None, self._episodes)

    @property
    def parts(self) -> int:
        """Shards that a lane draws from at any time (k), unless the lane has fewer."""
        return max(2, -(-self.resident_shards // self.num_lanes)) if self.options.shuffle else 1

    @property
    def num_shards(self) -> int:
        """Shards that have windows."""
        return int(np.count_nonzero(self.per_shard))

    def num_distinct(self, shard: NDArray[np.int64], window: NDArray[np.int64]) -> int:
        """Of how many episodes some windows are, (n,) each, at least one."""
        order = np.argsort(shard, kind="stable")
        shards, sizes = np.unique(shard, return_counts=True)
        return len(np.unique(self._episodes.group(shards, sizes, window[order])))

    def reach(self, num_lanes: int) -> int:
        """Windows of a lane that its pool of blocks may hold, were there so many lanes; 0 for an order by windows."""
        return 0 if self.blocks is None else max(2, self.pool_blocks // num_lanes) * self.blocks.longest

    def num_blocks(self) -> NDArray[np.int64]:
        """(S,) blocks of each shard, of an order by blocks."""
        return self._episodes.num_blocks(1 if self.blocks is None else self.blocks.steps)

    def episode_mix(self, num_lanes: int) -> EpisodeMix:
        """What says how varied batches are with any number of lanes."""
        return EpisodeMix(self.lay_out(num_lanes), self.shard_episodes, self._episodes.windows_per_episode)

    def lanes(self, epoch: int = 0) -> Lanes:
        """The lanes of an epoch."""
        return self.lay_out(self.num_lanes, epoch) if self._lanes is None else self._lanes

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of one epoch. Cheap: nothing is computed before it is asked for.

        Raises:
            OptionError: if the epoch is negative.
        """
        if epoch < 0:
            raise OptionError(f"epoch: {epoch}, wanted 0 or more.")
        lanes = self.lanes(epoch)
        if not self.options.shuffle:
            return SequentialEpoch(lanes.pieces(0) if self._runs is None else self._runs)
        return ShuffledEpoch(lanes, self._episodes, self.parts, (self.options.seed, epoch), self.blocks)

    def portions(self, epoch: int, positions: NDArray[np.int64], batch_size: int) -> tuple[Portion, ...]:
        """As `MixturePlan.portions`: all windows are of the one dataset, at the same positions of the same epoch."""
        return (Portion(0, epoch, positions, slice(None)),)

    def own_epochs(self, epoch: int, position: int) -> list[int]:
        """As `MixturePlan.own_epochs`."""
        return [epoch]

    def uses_from(self, epoch: int, position: int, lanes: Sequence[int] | None = None) -> Iterator[ShardUse]:
        """As `MixturePlan.uses_from`."""
        return self.epoch(epoch).uses_from(position, lanes)

    @lazy
    def fingerprint(self) -> str:
        """A digest of everything that decides the order; equal on all ranks, and in a state that may be resumed."""
        return xxhash.xxh3_128_hexdigest(repr(sorted(self.describe().items())).encode())

    def describe(self) -> dict[str, int | bool | str]:
        """What the fingerprint is made of, by the name of the option, to say which one differs."""
        counts = xxhash.xxh3_128()
        runs = () if self._runs is None else (self._runs.shard, self._runs.first, self._runs.count)
        for array in (self.per_shard, *runs):
            counts.update(np.ascontiguousarray(array, "<i8").tobytes())
        described: dict[str, int | bool | str] = {
            "order_version": ORDER_VERSION,
            "windows_per_shard": counts.hexdigest(),
            "windows_of_episodes": self._episodes.digest,
            "num_windows": self.num_windows,
            "shuffle": self.options.shuffle,
            "seed": int(self.options.seed),
            "lanes": self.num_lanes,
            "resident_shards": self.resident_shards,
            "reshuffle_lanes": self.options.reshuffle_lanes,
        }
        if self.blocks is not None:
            # Nothing of it in other orders: their states and fingerprints are those of releases that knew no blocks.
            described |= {"by": "blocks", "block_steps": self.blocks.steps, "pool_blocks": self.pool_blocks}
        return described

    def lanes_and_residents(self, options: OrderOptions) -> tuple[int, int]:
        """L and K of a shuffled order: what the options say, raised as far as the job that they declare needs it."""
        lanes = options.lanes if options.nodes is None else fitting_lanes(options.lanes, options.nodes, self.num_shards)
        lanes = min(lanes, self.num_windows)
        resident = options.resident_shards
        if resident is None:
            resident = default_resident_shards(self.per_shard, self.shard_bytes, self.shard_episodes, lanes)
        if options.nodes is not None:
            resident = max(resident, 2 * lanes)
        if options.global_batch is not None:
            room = parse_size(options.resident_bytes) * (options.nodes or 1)
            fitting = _shards_within(self.shard_bytes[self.per_shard > 0], room)
            parts = self.episode_mix(lanes).parts_for(options.global_batch, WANTED_SHARE)
            # Lanes share the shards at their cuts: all shards are more than K says.
            resident = max(resident, lanes * (parts if fitting == self.num_shards else min(parts, fitting // lanes)))
        return lanes, resident

    def _blocks(self) -> tuple[BlockSizes | None, int]:
        """What an order by blocks is made of, and its pool over all lanes."""
        options = self.options.resolved()
        if options.by != "blocks" or options.block_steps is None:
            return None, 0
        pool = LANE_BLOCKS * self.num_lanes if options.pool_blocks is None else options.pool_blocks
        pool = max(pool, 2 * self.num_lanes)
        longest = min(options.block_steps, int(self._episodes.windows_per_episode.max()))
        return BlockSizes(options.block_steps, pool // self.num_lanes, longest), pool

    def lay_out(self, num_lanes: int, epoch: int = 0) -> Lanes:
        """The shards of an epoch cut into any number of lanes, to compare; `lanes` are those of this plan."""
        order = np.arange(len(self.per_shard), dtype=np.int64)
        if self.options.shuffle:
            order = permutation(len(order), Purpose.SHARDS, self.options.seed, epoch)
        return Lanes(order, self.per_shard, num_lanes)


def default_resident_shards(
    per_shard: NDArray[np.int64],
    shard_bytes: NDArray[np.int64],
    shard_episodes: NDArray[np.int64],
    num_lanes: int,
) -> int:
    """K where the user names none: the shards that hold 256 episodes on average, within 4 GiB, at least 2 a lane.

    From the manifest's numbers alone: two ranks that looked at their free memory would compute different orders.
    """
    used = per_shard > 0
    num_shards, num_episodes = int(np.sum(used)), max(int(np.sum(shard_episodes[used])), 1)
    by_episodes = -(-_DEFAULT_EPISODES * num_shards // num_episodes)
    return max(2 * num_lanes, min(by_episodes, _shards_within(shard_bytes[used], _DEFAULT_BYTES)))


def fitting_lanes(lanes: int, nodes: int, num_shards: int) -> int:
    """L for a number of nodes: the multiple of them next to `lanes`, and no more than leaves each lane two shards.

    At least one lane a node in any case: nodes that share a lane would each fetch all of it.
    """
    rounded_up = -(-lanes // nodes) * nodes
    return max(nodes, min(rounded_up, num_shards // 2 // nodes * nodes))


def _shards_within(shard_bytes: NDArray[np.int64], num_bytes: int) -> int:
    """How many shards so many bytes hold, were they the largest."""
    largest_first = np.sort(shard_bytes)[::-1]
    return int(np.searchsorted(np.cumsum(largest_first), num_bytes, side="right"))
