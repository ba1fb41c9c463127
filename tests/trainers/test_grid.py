"""Every trainer, 1 and 2 ranks, 0 and 2 workers, uninterrupted and resumed: the windows of the reference, in its order.

``make grid`` runs all cells. Without the marker ``grid`` a choice is run: each trainer is resumed once, on two ranks.
"""

import json
import re
import resource
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
from launching import LENGTHS, NUM_EPOCHS, PROGRAMS, ROWS, Row, Start, launch

BATCHES_AN_EPOCH = {1: 18, 2: 9}
# Steps after which a run is broken off: an odd number of batches into the second epoch, so that workers are not even.
STOPS = {
    "uninterrupted": {1: None, 2: None},
    "mid-epoch": {1: 18 + 5, 2: 9 + 5},
    "end of an epoch": {1: 18, 2: 9},
}


class Cell(NamedTuple):
    """One box of the grid."""

    row: Row
    ranks: int
    workers: int
    circumstance: str

    @property
    def title(self) -> str:
        """The cell in words, in columns."""
        plural = " " if self.ranks == 1 else "s"
        return f"{self.row.program:<20} {self.ranks} rank{plural}  {self.workers} workers  {self.circumstance:<15}"

    @property
    def refusal(self) -> str | None:
        """The pattern of the sentence that answers this cell."""
        return self.row.refusals.get((self.workers, self.circumstance))

    @property
    def is_chosen(self) -> bool:
        """Whether it is run without ``make grid``."""
        return self[1:] == (2, 2, "mid-epoch")


CELLS = [Cell(*each) for each in product(ROWS, (1, 2), (0, 2), STOPS)]


PARAMS = [
    pytest.param(cell, marks=() if cell.is_chosen else pytest.mark.grid, id=re.sub(r"[\s-]+", "-", cell.title.strip()))
    for cell in CELLS
]


class Runs:
    """The starts of one cell: what each printed, and the windows that its ranks noted."""

    def __init__(self, cell: Cell, data: Path, out: Path, cache: Path) -> None:
        self.cell, self.out, self.printed = cell, out, ""
        self.windows: list[list[list[list[int]]]] = [[] for _ in range(cell.ranks)]
        self._start = Start(str(data), str(out), str(cache), cell.ranks, cell.workers, NUM_EPOCHS)

    def start(self, **changes) -> int | None:
        """Run the program once and take its notes. Returns its exit status."""
        row = self.cell.row
        ended = launch(PROGRAMS / f"{row.program}.py", replace(self._start, **changes), row.under_torchrun)
        self.printed += f"\n--- {changes}: exit status {ended.status}\n{ended.printed}"
        if ended.status == 0:
            for rank in range(self.cell.ranks):
                note = self.out / f"windows-{rank}.json"
                assert note.exists(), f"rank {rank} noted no windows.{self.printed}"
                self.windows[rank] += json.loads(note.read_text())
                note.unlink()
        return ended.status

    def all(self) -> int | None:
        """One start, or one that is broken off and one that goes on."""
        stop = STOPS[self.cell.circumstance][self.cell.ranks]
        if stop is None:
            return self.start()
        status = self.start(stop=stop)
        if status == 0:
            counts = [len(batches) for batches in self.windows]
            assert counts == [stop] * self.cell.ranks, f"steps before the end at {stop}: {counts}.{self.printed}"
            status = self.start(resume=True)
        return status


def difference(found: list, wanted: list) -> str:
    """Where two lists of batches part, and what they hold in all."""
    same = next(
        (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
    )
    counts = [Counter(tuple(window) for batch in batches for window in batch) for batches in (found, wanted)]
    return (
        f"{len(found)} batches, wanted {len(wanted)}; the first {same} are equal; {(counts[0] - counts[1]).total()} "
        f"windows too many, {(counts[1] - counts[0]).total()} missing"
    )


def processor_s() -> float:
    """Seconds of processors that children used, which a crowded machine changes less than those of a clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cell", PARAMS)
def test_windows_of_every_rank_come_as_without_a_trainer(
    cell, made_grid, reference, tmp_path, cache_directory, record_property
):
    for name, value in {"number": CELLS.index(cell), "cell": cell.title, "refused": bool(cell.refusal)}.items():
        record_property(name, value)
    runs, before = Runs(cell, made_grid, tmp_path, cache_directory), processor_s()
    status = runs.all()
    record_property("processor_s", processor_s() - before)
    if cell.refusal is not None:
        assert status not in (0, None), f"refused by no sentence: {status}.{runs.printed}"
        assert re.search(cell.refusal, runs.printed), f"wanted {cell.refusal!r} in:{runs.printed}"
        return
    assert status == 0, runs.printed
    wanted_by_rank = reference(cell.ranks, cell.ranks if cell.row.tells_nodes else 1)
    for rank, (found, wanted) in enumerate(zip(runs.windows, wanted_by_rank, strict=True)):
        assert found == wanted, f"rank {rank}: {difference(found, wanted)}.{runs.printed}"


def test_every_cell_is_in_the_grid_and_each_trainer_in_the_choice():
    trainers = [
        *("plain_ddp", "lightning_trainer", "hf_trainer", "accelerate_loop", "fabric_loop"),
        *("stock_dataloader", "stateful_dataloader", "ray_train"),
    ]
    assert [row.program for row in ROWS] == trainers
    assert len({cell.title for cell in CELLS}) == len(trainers) * 2 * 2 * 3
    assert Counter(cell.row.program for cell in CELLS if cell.is_chosen) == dict.fromkeys(trainers, 1)


@pytest.mark.parametrize(("ranks", "local_size"), [(1, 1), (2, 2), (2, 1)])
def test_reference_has_each_window_once_an_epoch_in_another_order_each(reference, ranks, local_size):
    everything = Counter((e, t) for e, length in enumerate(LENGTHS) for t in range(length))
    epochs = []
    for epoch in range(NUM_EPOCHS):
        batches = slice(epoch * BATCHES_AN_EPOCH[ranks], (epoch + 1) * BATCHES_AN_EPOCH[ranks])
        epochs.append(
            [tuple(w) for batches_of in reference(ranks, local_size) for batch in batches_of[batches] for w in batch]
        )
        assert Counter(epochs[-1]) == everything
    assert len({tuple(epoch) for epoch in epochs}) == NUM_EPOCHS
