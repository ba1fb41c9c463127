"""What commands show: tables that read well in 80 columns and are whole where there is no window, and progress."""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table


def printable(text: str, instead: str = "?") -> str:
    """Text from outside without what would move the cursor or end the line."""
    return "".join(sign if sign.isprintable() else instead for sign in text)


def new_table(title: str | None = None) -> Table:
    """A table without lines between columns, which a narrow window has no room for."""
    return Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)


def new_list() -> Table:
    """A table of names and what they stand for."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("value", overflow="fold")  # a path without spaces would be cut
    return table


def fits(table: Table) -> bool:
    """Whether nothing of a table will be folded."""
    console = report_console()
    unbounded = console.options.update(max_width=10_000)  # else a table says what it would be folded to
    return console.measure(table, options=unbounded).maximum <= console.width


def print_table(table: Table) -> None:
    """Print a table no wider than the window, a title after an empty line."""
    console = report_console()
    if table.title:
        console.print()
    console.print(table)


def progress_bar(*columns: ProgressColumn, **settings: Any) -> Progress:
    """A bar on stderr with the time that remains; nothing at all when that is no terminal."""
    console = Console(stderr=True)
    settings = {"transient": True, "console": console, "disable": not console.is_terminal, **settings}
    return Progress(*columns, TimeRemainingColumn(), **settings)


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Keep warnings of these loggers from stderr, where the command prints the same things itself."""
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def report_console() -> Console:
    """What reports are printed with: as wide as the window, 200 columns where there is none."""
    console = Console(highlight=False)
    # A file or pipe has no width: nothing may be cut or folded there.
    return console if console.is_terminal else Console(highlight=False, width=200)


class StageBar:
    """A progress bar on stderr, for each stage anew; nothing at all when that is no terminal."""

    def __init__(self) -> None:
        self._progress = progress_bar(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}")
        )
        self._stage = ""
        self._task: TaskID | None = None
        self._started = 0.0

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, stage: str) -> float:
        """Begin a stage, unless it is the one that goes on; seconds since it began."""
        if self._task is None or stage != self._stage:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._stage, self._started = stage, time.monotonic()
            self._task = self._progress.add_task(stage, total=None, amount="")
        return time.monotonic() - self._started

    def update(self, completed: int, total: int, amount: str, *, refresh: bool = False) -> None:
        """Show how far the stage is, in a bar and in words."""
        if self._task is not None:
            self._progress.update(self._task, completed=completed, total=total, amount=amount, refresh=refresh)
