"""`epistream export`: a dataset written in a format of others."""

import sys
from typing import Any

import click
from rich.console import Console

from epistream.commands.parameters import option
from epistream.commands.sources import FEATURE_HELP, layout_options, reach_option, storage_options, wanted_layout
from epistream.commands.tables import StageBar
from epistream.loader.exporting.choice import Choice
from epistream.loader.exporting.lerobot import ExportProgress, ExportReport, export_lerobot
from epistream.sharding.lerobot_out.options import ExportOptions
from epistream.shown_urls import shown
from epistream.units import count_text, size_text

_INTERRUPTED = 130  # what a shell reports of a program ended by Ctrl-C


@click.group(name="export")
def command() -> None:
    """Write a dataset in a format of others."""


@command.command(name="lerobot")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("out")
@option(ExportOptions, "version")
@click.option("--feature", "features", multiple=True, metavar="FEATURE", help=FEATURE_HELP)
@option(Choice, "split")
@option(Choice, "episodes", metavar="WHICH")
@option(Choice, "fps")
@option(Choice, "task")
@option(Choice, "pictures")
@option(Choice, "reencode")
@click.option("--as-recorded", is_flag=True, help="Do not turn pictures that were recorded upside down.")
@option(ExportOptions, "codec")
@option(ExportOptions, "crf")
@option(ExportOptions, "gop")
@option(ExportOptions, "preset")
@option(ExportOptions, "data_files_size_in_mb")
@option(ExportOptions, "video_files_size_in_mb")
@option(ExportOptions, "chunks_size")
@option(ExportOptions, "workers", default=None, show_default="one a core")
@option(ExportOptions, "engine")
@option(ExportOptions, "address")
@layout_options
@reach_option
def lerobot(sources: tuple[str, ...], out: str, features: tuple[str, ...], **options: Any) -> None:
    """Write SOURCE... (shards, HDF5 files, LeRobot data sets) as a LeRobot data set at OUT.

    OUT is a folder, or hf://datasets/OWNER/NAME. Videos are copied, other cameras encoded. Run it again to go on with
    one that was interrupted.
    """
    access = storage_options(options.pop("options_json"))
    layout = wanted_layout(options.pop("layout"), options.pop("layout_file"))
    options["upright"] = not options.pop("as_recorded")
    source = sources[0] if len(sources) == 1 else list(sources)
    display = _Display()
    try:
        with display:
            report = export_lerobot(
                source,
                out,
                layout=layout,
                storage_options=access,
                progress=display.show,
                features=features or None,
                **options,
            )
    except KeyboardInterrupt:
        click.echo(f"interrupted: the same command goes on with {shown(out)}", err=True)
        sys.exit(_INTERRUPTED)
    _print(report, out)


class _Display(StageBar):
    """How far the work is."""

    def show(self, now: ExportProgress) -> None:
        """Bring the bar up to date."""
        self.begin(now.stage)
        self.update(now.num_done, now.num_total, f"{now.num_done:,}/{now.num_total:,}")


def _print(report: ExportReport, out: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    how = f"in {report.seconds:.1f} s" if report.is_new else "complete already: nothing was written"
    console.print(f"{count_text(report.num_episodes, 'episode')}, {count_text(report.num_steps, 'step')}")
    console.print(f"{count_text(report.num_files, 'file')}, {size_text(report.num_bytes)}, {how}")
    console.print(shown(out), markup=False)
