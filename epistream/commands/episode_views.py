"""What ``epistream inspect`` shows of single episodes: those of a selection in a table, or one as a picture."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from epistream.commands.tables import new_table, print_table
from epistream.sharding.format.feature_sets import Wanted
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.selecting.facts import EpisodeFacts
from epistream.sharding.selecting.selection import parse_selection
from epistream.units import count_text

if TYPE_CHECKING:
    from PIL import Image

_TEXTS = ("key", "source", "path")


def list_episodes(dataset: Dataset, facts: EpisodeFacts, episodes: str, *, as_json: bool) -> None:
    """Print the episodes of a selection.

    Args:
        dataset: Of which they are.
        facts: What is known of its episodes.
        episodes: The selection.
        as_json: As one JSON object with everything that is known, attributes of those that it names included.

    Raises:
        EpistreamError: As `Selection.rows`.
    """
    selection = parse_selection(episodes)
    rows = np.flatnonzero(selection.rows(facts))
    names = sorted(name[1:] for name in selection.names if name.startswith("@"))
    texts = {name: facts.column(name).of_each() for name in _TEXTS}
    attributes = {name: column.of_each() for name, column in facts.attributes(names).items()} if names else {}
    found = []
    for episode in rows.tolist():
        one: dict[str, Any] = {"index": episode, **{name: values[episode] for name, values in texts.items()}}
        one["length"] = int(dataset.episode_length[episode])
        one["split"] = dataset.splits[int(dataset.episode_split[episode])]
        one["tasks"] = _tasks(dataset, episode)
        if names:
            one["attributes"] = {name: values[episode] for name, values in attributes.items()}
        found.append(one)
    if as_json:
        click.echo(json.dumps({"url": dataset.url, "episodes": found}, indent=1, ensure_ascii=False))
        return
    table = new_table()
    for name in ("index", "source", "length", "split", *names, "task"):
        table.add_column(name, justify="right" if name in ("index", "length") else "left", overflow="fold")
    for one in found:
        source = one["source"] or one["key"]
        if one["path"] not in ("", "/"):
            source += f": {one['path']}"
        told = ["" if one["attributes"][name] is None else str(one["attributes"][name]) for name in names]
        cells = [f"{one['index']:,}", source, f"{one['length']:,}", one["split"], *told, " | ".join(one["tasks"])]
        table.add_row(*map(_plain, cells))
    print_table(table)
    of = f"of {count_text(dataset.num_episodes, 'episode')}"
    click.echo(f"{len(rows):,} {of}, {count_text(sum(one['length'] for one in found), 'step')}")


def _tasks(dataset: Dataset, episode: int) -> list[str]:
    offsets, ids = dataset.episode_tasks
    return [dataset.tasks[one] for one in ids[offsets[episode] : offsets[episode + 1]].tolist()]


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # brackets are no markup here


def episode_picture(
    dataset: Dataset, episode: int, num_columns: int = 8, wanted: Wanted | None = None
) -> "Image.Image":
    """As `contact_sheet`, reading as a stream does but keeping nothing."""
    from epistream.cache.node import NodeCache
    from epistream.cache.options import CacheOptions
    from epistream.loader.order.window import Window
    from epistream.loader.random_access import RandomAccess
    from epistream.loader.reading.reader import ReaderOptions
    from epistream.sharding.check.contact_sheet import contact_sheet

    with ExitStack() as opened:

        def read(feature: Feature, steps: Sequence[int]) -> NDArray[Any]:
            cache = NodeCache(CacheOptions(mode="off"), dataset.storage_options)
            access = RandomAccess(dataset, {feature.name: feature}, Window(), cache, ReaderOptions())
            opened.callback(access.close)
            rows: NDArray[Any] = access.read(np.full(len(steps), episode), np.asarray(steps))[feature.name][:, 0]
            return rows

        return contact_sheet(dataset, episode, read, num_columns, wanted)
