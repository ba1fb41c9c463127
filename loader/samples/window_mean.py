"""WindowMean: the mean of values of windows over all ranks, each window counted once, exactly."""

import math
from collections import defaultdict
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import distributed

from epistream.errors import OptionError
from epistream.loader.order.world import World


class Means(NamedTuple):
    """What a `WindowMean` found.

    Attributes:
        values: the mean of each value, by name.
        num_windows: windows that it is of; ``stream.num_windows`` of them where all ranks read all their batches.
    """

    values: dict[str, float]
    num_windows: int


class WindowMean:
    """Means of one number per window, for validation: repeats that fill up the last batches do not count.

    Sums are exact and rounded once, at the end. So the mean is the same to the last bit for any number of ranks,
    workers and any batch size, as long as the values of the windows are.

    ```
    mean = WindowMean()
    for batch in loader:  # of EpisodeStream(..., validation=True)
        mean.add(batch, loss=((policy(batch) - batch["action"]) ** 2).mean(dim=(1, 2)))
    print(mean.over_all_ranks().values["loss"])
    ```
    """

    def __init__(self) -> None:
        self._sums: defaultdict[str, Fraction] = defaultdict(Fraction)
        self._others: defaultdict[str, float] = defaultdict(float)  # sums of what is infinite or no number
        self._num_windows = 0

    def add(self, batch: Mapping[str, Any], **values: Any) -> None:
        """Count the windows of a batch.

        Args:
            batch: of a stream that marks its repeats: ``is_repeat`` is bool (B,).
            values: (B,) each, on any device; at least one, and the same names for every batch.

        Raises:
            OptionError: a batch without marks, values that are not one for each window, or other values than before.
        """
        marks = batch.get("is_repeat") if isinstance(batch, Mapping) else None
        if marks is None:
            raise OptionError(
                "WindowMean.add: a batch without 'is_repeat', wanted one that says which windows are repeats. Make "
                "the stream with validation=True, and keep 'is_repeat' in a transform or sample_format of your own."
            )
        if not values:
            raise OptionError(
                "WindowMean.add: no values, wanted one or more, each a number for each window. Give them by name, "
                "such as the loss, as in docs/trainers.md."
            )
        if self._sums and values.keys() != self._sums.keys():
            raise OptionError(
                f"WindowMean.add: {', '.join(values)}, wanted {', '.join(self._sums)} as for the batches before. Give "
                "every value for every batch, or make another WindowMean."
            )
        keep = ~torch.as_tensor(marks).cpu().bool()  # also where a transform made numbers of them
        numbers = {name: torch.as_tensor(value).detach() for name, value in values.items()}
        for name, each in numbers.items():
            if each.shape != keep.shape:
                raise OptionError(
                    f"WindowMean.add: {name} of shape {tuple(each.shape)}, wanted {tuple(keep.shape)}, a number "
                    f"for each window. Average over all dimensions but the first: {name}.flatten(1).mean(1)."
                )
        for name, each in numbers.items():
            for number in each.cpu().double()[keep].tolist():
                if math.isfinite(number):
                    self._sums[name] += Fraction(number)
                else:
                    self._others[name] += number
            self._sums[name] += 0  # its name is known where all are repeats, too
        self._num_windows += int(keep.sum())

    def over_all_ranks(self, group: Any = None) -> Means:
        """The means of what all ranks have counted; every rank calls this, and gets the same.

        Args:
            group: the process group whose ranks have read different windows; all of them by default. Its timeout is
                the deadline of this call.

        Raises:
            OptionError: nobody has counted any window, ranks have counted different values, or there are other ranks
                and no process group.
        """
        ours = dict(self._sums), dict(self._others), self._num_windows
        everyone: list[Any] = [ours]
        if distributed.is_available() and distributed.is_initialized():
            everyone = [None] * distributed.get_world_size(group)
            distributed.all_gather_object(everyone, ours, group=group)
        elif (world := World.detect()).size > 1:
            raise OptionError(
                f"WindowMean.over_all_ranks: rank {world.rank} of {world.size}, and no process group, wanted one to "
                "ask the others by. Call torch.distributed.init_process_group() before."
            )
        num_windows = sum(count for *_, count in everyone)
        names = {frozenset(sums) for sums, *_ in everyone if sums}
        if len(names) > 1:
            told = " and ".join(sorted(", ".join(sorted(each)) for each in names))
            raise OptionError(
                f"WindowMean.over_all_ranks: {told} on different ranks, wanted the same of all. Add the same values on "
                "every rank."
            )
        if num_windows == 0:
            raise OptionError(
                "WindowMean.over_all_ranks: no window, wanted one or more. Call add(batch, ...) for every batch before."
            )
        values = {}
        for name in next(sums for sums, *_ in everyone if sums):
            other = sum(others.get(name, 0.0) for _, others, _ in everyone)
            exact = sum((sums.get(name, Fraction()) for sums, *_ in everyone), Fraction())
            values[name] = other if other else float(exact / num_windows)
        return Means(values, num_windows)
