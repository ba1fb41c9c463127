"""``epistream index``: indexes and a manifest for tars that have none, and other readers' sidecars."""

import click
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from epistream.commands.sources import reach_option, storage_options
from epistream.commands.tables import progress_bar
from epistream.errors import OptionError
from epistream.sharding.tar.reindex import Reindexed, ReindexOptions, draft_mapping, reindex
from epistream.sharding.tar.sidecars import NEIGHBOURS, Neighbour
from epistream.sharding.tar.step_draft import to_yaml
from epistream.sharding.tar.step_mapping import StepMapping, read_step_mapping
from epistream.units import count_text


@click.command()
@click.argument("source")
@click.option("--overwrite", is_flag=True, help="Replace the manifest that is there; its provenance is lost.")
@click.option("--steps", type=click.Path(exists=True, dir_okay=False), help="What samples of one step mean, as YAML.")
@click.option("--key", metavar="PATTERN", help="The same in short: where keys name them, such as 'ep{episode}_{step}'.")
@click.option("--draft", is_flag=True, help="Print a draft for --steps, from the first samples, and write nothing.")
@click.option("--emit", type=click.Choice(NEIGHBOURS), multiple=True, help="Also write this reader's sidecars.")
@reach_option
def command(
    source: str,
    overwrite: bool,
    steps: str | None,
    key: str | None,
    draft: bool,
    emit: tuple[Neighbour, ...],
    options_json: str | None,
) -> None:
    """Write indexes and a manifest beside the tars in SOURCE, for good.

    SOURCE is a folder or URL with tars, or a brace pattern or glob of tars in one folder. Each sample of a tar must
    be a whole episode; or one step, with --steps or --key. With --emit and a manifest in place, only the sidecars are
    written.
    """
    options = storage_options(options_json)
    if draft and (steps or key):
        raise OptionError("--draft: wanted alone, without --steps and --key: it says what these may be.")
    if draft:
        click.echo(to_yaml(draft_mapping(source, options)), nl=False)
        return
    with progress_bar(TextColumn("indexing {task.fields[name]}"), BarColumn(), MofNCompleteColumn()) as bar:
        task = bar.add_task("index", total=None, name="")
        done = reindex(
            source,
            ReindexOptions(overwrite=overwrite, emit=emit, steps=_mapping(steps, key)),
            options,
            advance=lambda name: bar.update(task, advance=1, name=name),
        )
    click.echo(_summary(done))


def _mapping(steps: str | None, key: str | None) -> StepMapping | None:
    if steps and key:
        raise OptionError("--steps and --key: both given, wanted one.")
    if key:
        return StepMapping.of({"key": key}, "--key")
    return read_step_mapping(steps) if steps else None


def _summary(done: Reindexed) -> str:
    if done.manifest is None:
        return f"{done.url}: wrote {count_text(len(done.names), 'file')}: {', '.join(done.names[:5])}"
    columns = done.manifest.columns
    return (
        f"{done.url}: {count_text(columns.num_shards, 'shard')}, {count_text(columns.num_episodes, 'episode')}, "
        f"{count_text(columns.num_steps, 'step')}; wrote {count_text(len(done.names), 'file')}. "
        f"Fingerprint {done.manifest.fingerprint}"
    )
