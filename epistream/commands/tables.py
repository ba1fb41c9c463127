"""What commands show: tables that read well in 80 columns and are whole where there is no window, and progress."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import Progress, ProgressColumn, TimeRemainingColumn
from rich.table import Table


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
    console = _console()
    unbounded = console.options.update(max_width=10_000)  # else a table says what it would be folded to
    return console.measure(table, options=unbounded).maximum <= console.width


def print_table(table: Table) -> None:
    """Print a table no wider than the window, a title after an empty line."""
    console = _console()
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


def _console() -> Console:
    console = Console(highlight=False)
    # A file or pipe has no width: nothing may be cut or folded there.
    return console if console.is_terminal else Console(highlight=False, width=200)
