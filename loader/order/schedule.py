"""The schedule: which positions of an epoch are whose, in which batch."""

from dataclasses import dataclass
from math import gcd
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from epistream.errors import OptionError
from epistream.loader.order.random_integers import Purpose, draw
from epistream.loader.order.world import World

Remainder = Literal["drop", "pad", "uneven"]


@dataclass(frozen=True)
class Schedule:
    """One rank's share of the rest of an epoch.

    Global batch t is positions ``[start + t*G, start + (t+1)*G)`` with G = batch size x ranks. Group n of N
    (a node, or a rank if nodes differ) takes those with ``p % N == n`` and deals them to its ranks in turn,
    beginning with another rank in each batch, so that no rank is tied to a lane.

    Attributes:
        num_windows: windows of the epoch.
        num_lanes: L of the plan.
        seed: the seed of the order.
        epoch: the epoch.
        start: the position where this iteration began: 0, or the one of a saved state.
        world: this rank's place.
        batch_size: windows per rank and batch.
        remainder: what happens to the windows that do not fill a global batch: "drop" leaves them out, "pad"
            fills up with repeats, "uneven" gives a short last batch, which some ranks may not get at all.
    """

    num_windows: int
    num_lanes: int
    seed: int
    epoch: int
    start: int
    world: World
    batch_size: int
    remainder: Remainder = "drop"

    def __post_init__(self) -> None:
        if self.remainder not in get_args(Remainder):
            raise OptionError(f"remainder: {self.remainder!r}, wanted one of {', '.join(get_args(Remainder))}.")
        if self.batch_size < 1:
            raise OptionError(f"batch_size: {self.batch_size}, wanted at least 1.")
        if not 0 <= self.start <= self.num_windows:
            raise OptionError(f"start: {self.start}, wanted a position from 0 to {self.num_windows}.")
        if self.remainder == "drop" and self.global_batch > self.num_windows:
            most = self.num_windows // self.world.size
            smaller = f'batch_size={most} or less, or remainder="pad"' if most else 'remainder="pad"'
            raise OptionError(
                f"batch_size: {self.batch_size} x {self.world.size} ranks = {self.global_batch} windows a batch, but "
                f"an epoch has {self.num_windows}: every batch would be dropped. Use {smaller}."
            )

    @property
    def global_batch(self) -> int:
        """G: windows of a batch over all ranks."""
        return self.batch_size * self.world.size

    @property
    def lanes(self) -> range:
        """The lanes that this node reads: those congruent to it, as far as both counts have divisors in common."""
        step = gcd(self.world.num_groups, self.num_lanes)
        return range(self.world.group % step, self.num_lanes, step)

    @property
    def num_batches(self) -> int:
        """This rank's batches; the same on every rank under "drop" and "pad"."""
        left = self.num_windows - self.start
        whole, rest = divmod(left, self.global_batch)
        if rest == 0 or self.remainder == "drop":
            return whole
        if self.remainder == "pad":
            return whole + 1
        return whole + (len(self._dealt(range(whole, whole + 1))) > 0)

    def positions(self, batch_index: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """This rank's positions of a batch, ascending but for repeats.

        Returns:
            positions (B,) int64 and is_repeat (B,) bool; fewer than B only in the last batch under "uneven".

        Raises:
            OptionError: if this rank has no such batch.
        """
        return self.positions_of(range(batch_index, batch_index + 1))

    def positions_of(self, batches: range) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """As `positions`, of several consecutive batches one after the other."""
        if not 0 <= batches[0] <= batches[-1] < self.num_batches:
            raise OptionError(f"batch: {batches[0]} to {batches[-1]}, wanted 0 to {self.num_batches - 1}.")
        positions = self._dealt(batches)
        beyond = positions - self.num_windows + 1
        is_repeat = beyond > 0
        # As far back as it takes, in whole rounds of the lanes: a repeat reads the lane that its node has open.
        back = self.num_lanes * -(-beyond // self.num_lanes)
        return np.where(is_repeat, positions - back, positions), is_repeat

    def position_after(self, batch_index: int) -> int:
        """Windows of the epoch that all ranks together have consumed after this batch: what a state saves."""
        return min(self.start + (batch_index + 1) * self.global_batch, self.num_windows)

    def after(self, num_batches: int) -> tuple[int, int]:
        """Epoch and position once a loop has been given so many batches: behind the last, the next epoch's start."""
        if num_batches >= self.num_batches:
            return self.epoch + 1, 0
        return self.epoch, self.position_after(num_batches - 1)

    def _dealt(self, batches: range) -> NDArray[np.int64]:
        """This rank's positions before repeats are folded back; those past the end are left out under "uneven"."""
        world = self.world
        begin = self.start + np.arange(batches.start, batches.stop, dtype=np.int64) * self.global_batch
        turn = np.zeros_like(begin)
        if world.group_size > 1:
            # Keyed by the position, not by the batch's number, which begins anew after a resume.
            turn[:] = [draw(world.group_size, Purpose.DEAL, self.seed, self.epoch, place) for place in begin.tolist()]
        first = begin + (world.group - begin) % world.num_groups
        place = (world.group_rank - turn) % world.group_size
        dealt = np.arange(self.batch_size, dtype=np.int64) * world.group_size
        positions = (first[:, None] + world.num_groups * (dealt + place[:, None])).reshape(-1)
        if self.remainder == "uneven":
            positions = positions[positions < self.num_windows]
        return positions
