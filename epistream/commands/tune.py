"""`epistream tune`: measures a dataset on this machine and writes a configuration for it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from epistream.commands.parameters import option
from epistream.commands.sources import FEATURE_HELP, layout_options, reach_option, storage_options, wanted_layout
from epistream.commands.tables import new_table, print_table
from epistream.configs.tune_options import TuneOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from epistream.configs.tuner import Tuning
    from epistream.loader.measuring.pictures import PictureCost


@click.command()
@click.argument("source", nargs=-1, required=True)
@click.option("--feature", "features", multiple=True, metavar="NAME", help=FEATURE_HELP)
@click.option("--batch-size", type=int, help="Windows per batch and rank.")
@click.option("--obs", metavar="START:STOP", help="Step offsets of observations.")
@click.option("--action", metavar="START:STOP", help="Step offsets of actions.")
@click.option("--image-size", nargs=2, type=int, metavar="HEIGHT WIDTH", help="Pixels that the training wants.")
@click.option("--config", "base", help="What is streamed: a YAML file, whose choices of speed are replaced.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key of it; may be repeated.")
@layout_options
@reach_option
@option(TuneOptions, "ranks")
@option(TuneOptions, "nodes")
@option(TuneOptions, "target")
@option(TuneOptions, "seconds")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the configuration here.")
@click.option("--json", "as_json", is_flag=True, help="Print choices, reasons and measurements as JSON.")
def command(source: tuple[str, ...], base: str | None, output: Path | None, as_json: bool, **options: Any) -> None:
    """Measure SOURCE on this machine; choose, predict and explain a configuration.

    Without --output the configuration is printed as YAML. Read it with epistream.load_config(FILE).
    """
    from epistream.commands.config import parse_change
    from epistream.configs.config import load_config
    from epistream.configs.tuned_yaml import tuned_yaml
    from epistream.configs.tuner import tune

    changes = dict(parse_change(change) for change in options.pop("changes"))
    for key in ("batch_size", "obs", "action"):
        value = options.pop(key)
        if value is not None:
            changes[key] = value
    layout, layout_file = options.pop("layout"), options.pop("layout_file")
    if wanted_layout(layout, layout_file) is not None:
        changes["stream.layout"] = layout_file or layout
    if options.pop("allow_outside_files"):
        changes["stream.allow_outside_files"] = True
    access = storage_options(options.pop("options_json"))
    if access:
        changes["stream.storage_options"] = access
    features = options.pop("features")
    if features:
        changes["stream.features"] = list(features)
    image_size = options.pop("image_size")
    if image_size:
        changes["stream.image_size"] = list(image_size)
    config, how = load_config(base, **changes), TuneOptions(**options)
    error_console = Console(stderr=True)
    with error_console.status("") as status:
        tuning = tune(
            source[0] if len(source) == 1 else list(source), how, config, lambda text: status.update(f"{text} ...")
        )
    text = tuned_yaml(tuning)
    if output is not None:
        output.write_text(text, encoding="utf-8")
    if as_json:
        print(json.dumps(tuning.to_json(), indent=2))
    elif output is None:
        print(text, end="")
    else:
        _show(tuning, output)


def _show(tuning: "Tuning", output: Path) -> None:
    from epistream.units import size_text

    console, prediction = Console(highlight=False, soft_wrap=True), tuning.prediction
    console.print(f"[bold]machine[/]     {tuning.machine}")
    found = tuning.survey
    console.print(
        f"[bold]data[/]        {size_text(found.dataset_bytes)} on {found.place.name}, read at "
        f"{size_text(found.fetch_bytes_per_s)}/s; {found.num_windows:,} windows; "
        f"{size_text(found.decoded_bytes)} decoded"
    )
    table = new_table()
    table.add_column("key", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("why")
    for key, reason in tuning.reasons.items():
        table.add_row(key, *map(escape, (json.dumps(tuning.config.said[key]), reason)))
    print_table(table)
    console.print(
        f"[bold]predicted[/]   {prediction.windows_per_s:,.0f} windows/s on this node, limited by {prediction.limit}; "
        f"{prediction.first_epoch_windows_per_s:,.0f} in the first epoch\n"
        f"[bold]memory[/]      {prediction.memory_text}"
    )
    if tuning.pictures:
        print_table(_picture_table(tuning.pictures))
    for way in tuning.repacking:
        verdict = "pays" if way.pays else "does not pay"
        console.print(
            f"[bold]packing[/]     {way.name}: {way.prediction.windows_per_s:,.0f} windows/s, "
            f"{size_text(way.dataset_bytes)}: {verdict}"
        )
    for note in tuning.notes:
        console.print(f"[bold]note[/]        {escape(note)}")
    console.print(f"Written to {output}. Use: epistream.load_config({str(output)!r}).loader()")


def _picture_table(pictures: "Sequence[PictureCost]") -> Table:
    """What the frames of the sample cost in each form."""
    from epistream.units import size_text

    table = new_table()
    table.add_column("pictures", overflow="fold")
    for name in ("dataset", "bytes", "PSNR dB, worst", "decode ms", "encode/s", "pool"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in pictures:
        lossless = row.psnr_db is None or row.worst_psnr_db is None
        table.add_row(
            escape(row.name),
            size_text(row.dataset_bytes),
            f"{row.bytes_per_frame:,.0f}",
            "" if lossless else f"{row.psnr_db:.1f}, {row.worst_psnr_db:.1f}",
            f"{row.decode_ms:.2f}",
            "" if row.encode_frames_per_s is None else f"{row.encode_frames_per_s:,.0f}",
            size_text(row.pool_bytes) if row.pool_bytes else "",
        )
    return table
