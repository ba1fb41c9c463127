"""`epistream pack`: HDF5 episodes and LeRobot data sets into tar shards."""

import os
import sys
from typing import Any

import click
import natsort
from rich.console import Console

from epistream.commands.parameters import option
from epistream.commands.sources import layout_options, reach_option, storage_options, wanted_layout
from epistream.commands.tables import StageBar, quiet
from epistream.errors import OptionError
from epistream.hints import grouped
from epistream.sharding.format.features import Feature
from epistream.sharding.format.left_out import left_out_lines
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.pack import pack
from epistream.sharding.pack.report import PackProgress, PackReport
from epistream.sharding.pictures.codecs import CODECS
from epistream.shown_urls import shown
from epistream.units import count_text, size_text

_MAX_FAULTS_SHOWN = 50
# They warn those who call `pack` of what is printed here anyway.
_TOLD_BY_THE_REPORT = ("epistream.sharding.pack.pack", "epistream.sharding.format.left_out")


@click.command(name="pack")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.argument("out")
@layout_options
@option(PackOptions, "codec")
@option(PackOptions, "quality")
@option(PackOptions, "crf")
@option(PackOptions, "gop")
@option(PackOptions, "preset")
@option(PackOptions, "shard_size", metavar="SIZE")
@option(PackOptions, "cameras", "--camera", multiple=True, metavar="NAME")
@option(PackOptions, "drop", multiple=True, metavar="FEATURE")
@option(PackOptions, "rename", multiple=True, metavar="OLD=NEW")
@option(PackOptions, "color_order")
@option(PackOptions, "force_color_order")
@option(PackOptions, "image_size", metavar="WxH")
@option(PackOptions, "fps")
@option(PackOptions, "episodes", metavar="WHICH")
@option(PackOptions, "val_fraction")
@option(PackOptions, "split_seed")
@option(PackOptions, "workers", default=None, show_default="one a core")
@option(PackOptions, "engine")
@option(PackOptions, "address")
@option(PackOptions, "task_index")
@option(PackOptions, "num_tasks")
@option(PackOptions, "publish")
@option(PackOptions, "resume")
@option(PackOptions, "overwrite")
@option(PackOptions, "skip_bad")
@reach_option
def command(sources: tuple[str, ...], out: str, workers: int | None, **options: Any) -> None:
    """Pack SRC... into a dataset of tar shards at OUT (folder or URL).

    SRC is HDF5 files, folders or globs of them, or LeRobot data sets (folders or URLs), whose videos are copied.
    """
    access = storage_options(options.pop("options_json"))
    options["layout"] = wanted_layout(options["layout"], options.pop("layout_file"))
    options["rename"] = [_pair(text) for text in options["rename"]]
    options["image_size"] = _size(options["image_size"])
    if list(sources) == sorted(sources):
        # As a shell expands a glob: episode_10 before episode_2.
        sources = tuple(natsort.natsorted(sources, alg=natsort.ns.PATH))
    if workers is None and options["engine"] == "local":
        workers = len(os.sched_getaffinity(0))
    display = _Display()
    try:
        with display, quiet(*_TOLD_BY_THE_REPORT):
            report = pack(sources, out, storage_options=access, progress=display.show, workers=workers, **options)
    except KeyboardInterrupt:
        click.echo(f"interrupted: nothing was published; complete shards stay in {shown(out)} for --resume", err=True)
        # What a shell reports of a program ended by Ctrl-C.
        sys.exit(130)
    _print(report)


def _pair(text: str) -> tuple[str, str]:
    old, sign, new = text.partition("=")
    if not (old and sign and new):
        raise OptionError(f"--rename {text!r}: wanted OLD=NEW, for example cam_high=top.")
    return old, new


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise OptionError(f"--image-size {text!r}: wanted WIDTHxHEIGHT, for example 320x240.")
    return int(width), int(height)


class _Display(StageBar):
    """How far the work is."""

    def show(self, now: PackProgress) -> None:
        """Bring the bar up to date."""
        seconds = self.begin(now.stage)
        self.update(
            now.bytes_done if now.bytes_total else now.num_done,
            now.bytes_total or now.num_total,
            self._amount(now, seconds),
            refresh=now.num_done == now.num_total,
        )

    def _amount(self, now: PackProgress, seconds: float) -> str:
        what = {"packing": "episodes", "publishing": "manifest"}.get(now.stage, "files")
        text = f"{now.num_done:,}/{now.num_total:,} {what}"
        if now.bytes_total:
            rate = now.bytes_done / max(seconds, 1e-3)
            text += f"  {size_text(now.bytes_done)} of {size_text(now.bytes_total)}  {size_text(rate)}/s"
        return text + (f"  {now.num_faults} bad" if now.num_faults else "")


def _print(report: PackReport) -> None:
    console = Console(highlight=False, soft_wrap=True)
    how = _how(report)
    layouts = " and ".join(count_text(count, f"{name} file") for name, count in report.layouts.items())
    splits = ", ".join(f"{name} {count:,}" for name, count in report.splits.items())
    console.print(
        f"{count_text(report.num_episodes, 'episode')}, {count_text(report.num_steps, 'step')} from {layouts}",
        markup=False,
    )
    console.print(f"{count_text(report.num_shards, 'shard')}, {size_text(report.num_bytes)}{how}")
    if report.is_published:
        console.print(f"splits: {splits}" if set(report.splits) != {"all"} else "no split")
    for note in report.notes:
        console.print(note, style="yellow", markup=False)
    cameras = [feature for feature in report.features.values() if feature.kind == "frames"]
    if cameras:
        console.print("cameras, width x height x channels:")
    for feature in cameras:
        console.print(f"  {feature.name}: {_describe(feature, report)}", markup=False)
    if report.outside_files:
        console.print(f"read outside of the sources' folders: {', '.join(report.outside_files)}", markup=False)
    for name, counts in report.not_finite.items():
        console.print(f"not finite: {name}: {counts}; statistics leave them out", style="yellow", markup=False)
    for line in left_out_lines(report.left_out):
        console.print(f"not packed: {line}", markup=False)
    if len(report.faults) > 1:
        console.print(f"{len(report.faults):,} left out, all of them named in the manifest:", style="yellow")
    faults = grouped(report.faults)
    for fault in faults[:_MAX_FAULTS_SHOWN]:
        console.print(f"left out: {fault}", style="yellow", markup=False)
    if len(faults) > _MAX_FAULTS_SHOWN:
        console.print(f"... and {len(faults) - _MAX_FAULTS_SHOWN:,} more of other kinds", style="yellow")
    published = f"fingerprint {report.fingerprint}" if report.is_published else "not published yet: --publish does that"
    console.print(f"{report.url}  {published}", markup=False)


def _how(report: PackReport) -> str:
    """From what the shards were made, and how fast."""
    seconds, resumed = f"{report.seconds:.1f} s", count_text(report.num_resumed, "shard")
    if not report.is_published:
        return f" by this task in {seconds}, {resumed} there before"
    source = f" from {size_text(report.source_bytes)}"
    if not report.is_new:
        return f"{source}, complete already: nothing was packed"
    if report.num_resumed:  # it did not read all of these bytes
        return f"{source} in {seconds}, {resumed} resumed"
    return f"{source} in {seconds} ({size_text(report.source_bytes / max(report.seconds, 1e-9))}/s)"


def _describe(feature: Feature, report: PackReport) -> str:
    height, width, channels = feature.shape
    text = f"{width}x{height}x{channels} {feature.codec}"
    text += f", groups of {feature.group_steps:,}" if feature.group_steps else ""
    measured = report.fidelity.get(feature.name)
    if measured is not None:
        return (
            f"{text}, encoded: PSNR {measured.mean_psnr_db:.1f} dB, worst {measured.worst_psnr_db:.1f} dB "
            f"({measured.num_frames} frames)"
        )
    if not report.is_new:
        return text  # whether they were encoded only the job knew that packed them
    return f"{text}, copied byte for byte" if CODECS[feature.codec].is_lossy else f"{text}, exact"
