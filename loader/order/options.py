"""What the user decides of the order of an epoch, beside the dataset and the window."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from epistream.errors import OptionError
from epistream.loader.order.random_integers import Seed
from epistream.options import Count, Range, Size, check

# Blocks of a lane's pool, and steps of a block: at least so many of whole groups of a video, or those without one.
LANE_BLOCKS = 16
FEWEST_STEPS = 8
_BLOCK_STEPS = 32
# What the blocks of a pool take on a node where the user names no number: as much as shards may by default.
_POOL_BYTES = 4 * 2**30
# Groups of a video up to so many frames are decoded for each window; those of two only where all frames are few.
SMALL_GROUP = 2
_MOST_BLOCKS = 1 << 24

By = Literal["windows", "blocks"]


@dataclass(frozen=True)
class OrderOptions:
    """What decides the order of an epoch, beside the dataset and the window.

    The order is made for a job if its size is declared here: then L and K suit it. What is declared counts, not what
    runs, so that a state resumes exactly on any other number of nodes or batch size.

    Attributes:
        shuffle: False streams in storage order. There is one lane then.
        seed: of the order. Any integer in [0, 2**64).
        lanes: independent runs; a multiple of the nodes. L: the shards are dealt to them.
        resident_shards: K, shards drawn from at a time, at least 2 x lanes; from the manifest if None. Over all lanes.
        reshuffle_lanes: deal shards to lanes anew each epoch, and fetch them anew.
        nodes: declared nodes, which L becomes a multiple of; not looked at if None. Rounded up from `lanes`, or
            down if there are few shards; K becomes at least 2 L.
        global_batch: declared windows of a batch over all ranks, which K suits; not looked at if None. K is raised
            until such a batch holds 0.95 of the distinct episodes that a full permutation would give it.
        resident_bytes: of the shards on each declared node; K is raised no further. For `global_batch` alone.
        by: what is permuted. ``"windows"``, or ``"blocks"`` of neighbouring steps, whose frames are then decoded once
            for all windows that show them. By blocks if None and cameras are video whose groups are longer than 2, or
            of 2 and more than 1 GiB decoded (see `resolved_order`), or a number below is given; else by windows.
        block_steps: of a block at most; the least multiple of a video's groups from 8 on if None, 32 without video, 2
            of groups of 2 whose windows show one step.
        pool_blocks: blocks drawn from at a time, at least 2 x lanes. Over all lanes; 16 x lanes if None, or what 4 GiB
            of each declared node hold of decoded frames, if that is less; of groups of 2 all blocks, if 4 GiB hold all.

    Raises:
        OptionError: a number outside its range, fewer resident shards or blocks than the lanes need, or blocks in an
            order that has none.
    """

    shuffle: bool = True
    seed: Seed = 0
    lanes: Annotated[Count, Range(le=1 << 16)] = 8
    resident_shards: Annotated[Count, Range(le=1 << 24)] | None = None
    reshuffle_lanes: bool = False
    nodes: Annotated[Count, Range(le=1 << 16)] | None = None
    global_batch: Annotated[Count, Range(le=1 << 32)] | None = None
    resident_bytes: Size = 8 * 2**30
    by: By | None = None
    block_steps: Annotated[Count, Range(le=1 << 16)] | None = None
    pool_blocks: Annotated[Count, Range(le=_MOST_BLOCKS)] | None = None

    def __post_init__(self) -> None:
        check(self)
        self._check_blocks()
        if self.resident_shards is not None and self.shuffle and self.resident_shards < 2 * self.lanes:
            smaller = self.resident_shards // 2
            cure = f"lanes={smaller}" if smaller else "shuffle=False, which holds one shard at a time"
            raise OptionError(
                f"resident_shards: {self.resident_shards}, wanted at least 2 x lanes = {2 * self.lanes}. "
                f"Use resident_shards={2 * self.lanes}, or {cure}."
            )

    def resolved(
        self, group_steps: int | None = None, block_bytes: Callable[[int], int] | None = None
    ) -> "OrderOptions":
        """With `by`, `block_steps` and `pool_blocks` as they are for a dataset; what is resolved stays as it is.

        Args:
            group_steps: steps of the longest group of the cameras that are video; None without one.
            block_bytes: of what is kept of a block of so many steps; `pool_blocks` is left open without it.
        """
        asked = self.block_steps is not None or self.pool_blocks is not None
        by: By = self.by or ("blocks" if self.shuffle and (asked or (group_steps or 1) > SMALL_GROUP) else "windows")
        if by == "windows":
            return replace(self, by=by)
        steps = self.block_steps
        if steps is None:
            steps = _BLOCK_STEPS if group_steps is None else -(-FEWEST_STEPS // group_steps) * group_steps
            steps = min(steps, 1 << 16)
        pool = self.pool_blocks
        if pool is None and block_bytes is not None:
            pool = self.fitting_pool(block_bytes(steps))
        return replace(self, by=by, block_steps=steps, pool_blocks=pool)

    def fitting_pool(self, block_bytes: int, num_blocks: int | None = None) -> int:
        """The blocks of a pool where the user names no number: at least two a lane, else no more than fit.

        Args:
            block_bytes: of what is kept of a block.
            num_blocks: that are wanted; `LANE_BLOCKS` a lane if None.
        """
        nodes = self.nodes or 1
        lanes = -(-self.lanes // nodes) * nodes  # as many as an order for these nodes has, unless shards are few
        wanted = LANE_BLOCKS * lanes if num_blocks is None else num_blocks
        return max(2 * lanes, min(wanted, nodes * _POOL_BYTES // max(1, block_bytes), _MOST_BLOCKS))

    def in_storage_order(self) -> "OrderOptions":
        """The same without shuffling."""
        return replace(self, shuffle=False, by=None, block_steps=None, pool_blocks=None)

    def _check_blocks(self) -> None:
        given = [name for name in ("block_steps", "pool_blocks") if getattr(self, name) is not None]
        if self.by == "windows" and given:
            raise OptionError(
                f"{given[0]}: {getattr(self, given[0])} with by='windows', which has no blocks. Use "
                f"by='blocks', or leave {' and '.join(given)} out."
            )
        if not self.shuffle and (given or self.by == "blocks"):
            told = [f"{name}={getattr(self, name)!r}" for name in ("by", *given) if getattr(self, name) is not None]
            raise OptionError(
                f"shuffle: False with {', '.join(told)}, wanted an order that is shuffled by blocks. Use "
                "shuffle=True, or leave them out: in the order of the dataset blocks are whole anyway."
            )
        if self.pool_blocks is not None and self.pool_blocks < 2 * self.lanes:
            smaller = self.pool_blocks // 2
            cure = f"lanes={smaller}" if smaller else "by='windows'"
            raise OptionError(
                f"pool_blocks: {self.pool_blocks}, wanted at least 2 x lanes = {2 * self.lanes}. "
                f"Use pool_blocks={2 * self.lanes}, or {cure}."
            )
