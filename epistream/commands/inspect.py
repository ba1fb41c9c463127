"""``epistream inspect``: what a dataset holds, as tables, as JSON, or as a picture of one episode."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from epistream.commands.layouts import with_draft
from epistream.commands.sources import (
    FEATURE_HELP,
    division_options,
    layout_options,
    open_source,
    reach_option,
    wanted_layout,
)
from epistream.commands.tables import fits, new_list, new_table, print_table, printable
from epistream.errors import LayoutError, OptionError, SourceError
from epistream.sharding.check.inspect import EpisodeFrames, describe
from epistream.sharding.dataset_facts import facts_of
from epistream.sharding.format.feature_sets import choose_features
from epistream.sharding.format.statistics import NotFinite
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.units import size_text

_MOST_TASKS = 20
_MOST_DIMENSIONS = 16


@click.command()
@click.argument("source", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--episode", type=click.IntRange(0), metavar="N", help="Look at this episode, counted from 0.")
@click.option("--episodes", metavar="WHICH", help="List these, such as '0:100', 'length < 50' or '@FILE'; ':' is all.")
@click.option(
    "--image",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write its cameras, states and actions over time here.",
)
@click.option("--feature", "features", multiple=True, metavar="NAME", help=FEATURE_HELP)
@click.option("--columns", type=click.IntRange(1, 100), default=8, show_default=True, help="Steps in the picture.")
@layout_options
@division_options
@reach_option
def command(
    source: tuple[str, ...],
    as_json: bool,
    episode: int | None,
    episodes: str | None,
    image: Path | None,
    columns: int,
    features: tuple[str, ...],
    **reached: Any,
) -> None:
    """Show what a dataset holds: features, shards, splits, statistics, tasks.

    SOURCE is a dataset's folder or URL, tars by a brace pattern or glob, HDF5 files, or a LeRobot data set.
    """
    wanted = features or None
    if episodes is not None and (episode is not None or image is not None):
        raise OptionError("--episodes: with --episode or --image, wanted one of them: it lists episodes.")
    try:
        dataset = open_source(source, **reached, features=wanted)
    except LayoutError as error:
        raise with_draft(error, source, reached["options_json"], reached["allow_outside_files"]) from error
    if episodes is not None:
        from epistream.commands.episode_views import list_episodes

        layout = wanted_layout(reached["layout"], reached["layout_file"])
        known = facts_of(dataset, layout=layout, allow_outside_files=reached["allow_outside_files"])
        list_episodes(dataset, known, episodes, as_json=as_json)
        return
    if image is not None:
        _write_image(dataset, 0 if episode is None else episode, image, columns, wanted)
        return
    if episode is not None:
        facts = _describe_episode(dataset, episode)
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False)) if as_json else _show_episode(facts)
        return
    if wanted is not None:
        dataset = replace(dataset, features=choose_features(dataset.features, wanted))
    facts = describe(dataset)
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        _show(facts)


def _write_image(dataset: Dataset, episode: int, path: Path, columns: int, features: tuple[str, ...] | None) -> None:
    from epistream.commands.episode_views import episode_picture

    sheet = episode_picture(dataset, episode, columns, features)
    try:
        sheet.save(path)
    except ValueError as error:
        raise OptionError(f"--image {path}: {error}, wanted a name such as out.png.") from error
    except OSError as error:
        raise SourceError(f"{path}: {error}, wanted to write a picture. Check room and permissions.") from error
    click.echo(f"{path}: episode {episode}, {sheet.width}x{sheet.height} pixels (width x height)")


def _describe_episode(dataset: Dataset, episode: int) -> dict[str, Any]:
    frames = EpisodeFrames(dataset, episode)
    shard = int(dataset.episode_shard[episode])
    known = {"key": frames.key, "shard": dataset.shard_url[shard]}
    # The index counts among what was packed; a person counts in the dataset.
    split = dataset.splits[int(dataset.episode_split[episode])]
    known |= frames.meta.to_dict() | {"episode_index": episode, "split": split}
    return known | ({"files": list(frames.files)} if frames.files else {})


def _show_episode(facts: dict[str, Any]) -> None:
    table = new_list()
    for name, value in facts.items():
        joint = {"tasks": " | ", "files": ", "}.get(name)
        table.add_row(name.replace("_", " "), _plain(joint.join(value) if joint else str(value)))
    print_table(table)


def _show(facts: dict[str, Any]) -> None:
    print_table(_overview(facts))
    print_table(_features(facts["features"]))
    if len(facts["splits"]) > 1:
        print_table(_splits(facts["splits"]))
    for name, values in facts["statistics"].items():
        print_table(_statistics(name, values, is_estimated=name in facts["estimated_quantiles"]))
    for name, counts in facts["not_finite"].items():
        click.echo(f"{name}: {NotFinite(**counts)}; statistics leave them out")
    if facts["tasks"]:
        print_table(_tasks(facts["tasks"]))


def _overview(facts: dict[str, Any]) -> Table:
    lengths, sizes = facts["episode_length"], facts["shard_bytes"]
    table = new_list()
    duration = ""
    if facts["duration_s"] is not None:
        seconds = facts["duration_s"]
        duration = f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:,.1f} min"
        duration = f", {duration} at {facts['fps'][0]:g} Hz"
    skipped = facts["num_steps"] - facts["num_valid_steps"]
    about, indexes = "", f"indexes {facts['num_index_bytes']:,} bytes"
    if facts["has_estimated_bytes"]:
        about, indexes = "about ", "by the first files of each camera; indexes are made as episodes are read"
    rows = {
        "dataset": _plain(facts["url"]),
        "fingerprint": facts["fingerprint"],
        "episodes": f"{facts['num_episodes']:,} of {_range(lengths, '{:,.0f}'.format)} steps",
        "steps": f"{facts['num_steps']:,}{duration}" + (f", {skipped:,} not valid as anchors" if skipped else ""),
        "shards": f"{facts['num_shards']:,} of {about}{_range(sizes, size_text)}",
        "bytes": f"{about}{size_text(facts['num_bytes'])}, {indexes}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _range(spread: dict[str, float], text: Callable[[float], str]) -> str:
    low, middle, high = (text(spread[name]) for name in ("min", "median", "max"))
    return low if low == high else f"{low} to {high} (median {middle})"


def _plain(text: str) -> str:
    """Text from outside, without control characters and without rich's markup."""
    from rich.markup import escape

    return escape(printable(text, " "))


def _features(features: list[dict[str, Any]]) -> Table:
    optional = [name for name in ("units", "source_path") if any(feature[name] for feature in features)]
    if len({feature["fps"] for feature in features}) > 1:  # else the overview says it
        optional.insert(0, "fps")
    table = _feature_table(features, optional)
    notes = ["pictures: width x height x channels"] if any(feature["kind"] == "frames" for feature in features) else []
    if "source_path" in optional and not fits(table):
        # Folded paths are hard to read, and most say again what the names say.
        table = _feature_table(features, optional[:-1])
        notes.append("their paths in the source: --json, or a wider window")
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    return table


def _feature_table(features: list[dict[str, Any]], optional: list[str]) -> Table:
    table = new_table("features")
    table.add_column("feature", no_wrap=True)  # in a narrow window other columns give way
    for name in ("shape", "dtype", "codec", *optional):
        table.add_column(name.replace("_path", ""), overflow="fold")
    for feature in features:
        codec = feature["codec"]
        if feature["jpeg_channels"]:
            codec += f" ({feature['jpeg_channels']})"
        if feature.get("group_steps"):
            codec += f", groups of {feature['group_steps']:,}"
        if feature["rotate"]:
            codec += f", upright after {feature['rotate']}°"
        sides = feature["shape"]
        if feature["kind"] == "frames":
            sides = [sides[1], sides[0], *sides[2:]]
        shape = "x".join(map(str, sides)) or "a number"
        values = {"fps": "" if feature["fps"] is None else f"{feature['fps']:g}"}
        values |= {name: _plain(feature[name] or "") for name in ("units", "source_path")}
        table.add_row(feature["name"], shape, feature["dtype"], codec, *(values[name] for name in optional))
    return table


def _splits(splits: list[dict[str, Any]]) -> Table:
    table = new_table("splits")
    for name in ("split", "shards", "episodes", "steps", "size"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split in splits:
        counts = (f"{split[name]:,}" for name in ("num_shards", "num_episodes", "num_steps"))
        table.add_row(_plain(split["name"]), *counts, size_text(split["num_bytes"]))
    return table


def _statistics(name: str, values: dict[str, Any], *, is_estimated: bool) -> Table:
    columns = [key for key in ("mean", "std", "min", "q01", "q99", "max") if key in values]
    table = new_table(f"{name}, {values['count']:,} steps")
    table.add_column("dim", justify="right")
    for key in columns:
        table.add_column(key, justify="right")
    flat = {key: np.ravel(np.array(values[key], dtype=object)) for key in columns}
    if is_estimated:
        table.caption, table.caption_justify = "quantiles are estimates: some parts have no sketch of them", "left"
    num_dims = len(flat["mean"])
    for dim in range(min(num_dims, _MOST_DIMENSIONS)):
        numbers = ("-" if flat[key][dim] is None else f"{flat[key][dim]:.4g}" for key in columns)
        table.add_row(str(dim), *numbers)
    if num_dims > _MOST_DIMENSIONS:
        table.add_row("...", *(f"{num_dims} dims" if key == "mean" else "" for key in columns))
    return table


def _tasks(tasks: list[dict[str, Any]]) -> Table:
    table = new_table(f"tasks, {len(tasks):,}")
    table.add_column("episodes", justify="right")
    table.add_column("task", overflow="fold")
    for task in tasks[:_MOST_TASKS]:
        table.add_row(f"{task['num_episodes']:,}", _plain(task["task"]))
    if len(tasks) > _MOST_TASKS:
        table.add_row("...", f"and {len(tasks) - _MOST_TASKS:,} more (all with --json)")
    return table
