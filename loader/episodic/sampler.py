"""Deals the windows of a map-style dataset to ranks, as the process group says when they are asked for."""

import logging
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset, DistributedSampler

from epistream.loader.order.world import World

_log = logging.getLogger(__name__)


class RankSampler(DistributedSampler[Any]):
    """torch's ``DistributedSampler``, which may be made before the process group is.

    That one is of as many ranks as there were when it was made; a loader that is made before
    ``init_process_group`` would give every rank all windows.

    Args:
        dataset: anything with a length.
        world: which rank this is; by default what torch.distributed says, from when on it is initialised, or the
            launcher.
        shuffle: anew in every epoch, see ``set_epoch``.
        seed: must be the same on all ranks.
        drop_last: leave out what is not a multiple of the ranks; else some windows come twice.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        world: World | None,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self._finds_world = world is None
        self._awaits_world = self._finds_world and World.is_to_come()
        self._options: dict[str, Any] = {"shuffle": shuffle, "seed": seed, "drop_last": drop_last}
        self._world = World() if self._awaits_world else world or World.detect()
        super().__init__(dataset, self._world.size, self._world.rank, **self._options)

    def __len__(self) -> int:
        self._follow()
        return super().__len__()

    def __iter__(self) -> Iterator[Any]:
        self._follow()
        if self._finds_world and self._world.is_untold:
            _log.warning(
                "create_optimized_dataloader: this process was started by another one, and neither a process group nor "
                "the environment tells its rank: it reads all windows, as would its sisters. Call "
                "torch.distributed.init_process_group before the first iteration, or pass use_distributed=False if it "
                "is alone."
            )
        return super().__iter__()

    def _follow(self) -> None:
        if not self._finds_world:
            return
        world = World.detect() if self._awaits_world else World.of_process_group(self._world)
        self._awaits_world = False
        if world != self._world:
            epoch, self._world = self.epoch, world
            super().__init__(self.dataset, world.size, world.rank, **self._options)
            self.set_epoch(epoch)
