"""``epistream doctor``: what is wrong with the episodes of a dataset, check by check, with what to do about it."""

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from epistream.commands.parameters import option
from epistream.commands.sources import layout_options, reach_option, storage_options, wanted_layout
from epistream.commands.tables import StageBar, new_table, print_table, printable, quiet, report_console
from epistream.loader.doctor.checks.check import LEVELS, Finding, Level
from epistream.loader.doctor.checks.registry import CHECKS
from epistream.loader.doctor.doctor import Diagnosis, doctor
from epistream.loader.doctor.options import DoctorOptions
from epistream.units import count_text

_MOST_TOLD, _MOST_NAMED = 5, 12
_STYLES: dict[Level, str] = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def _list_checks(context: click.Context, _: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        table = new_table()
        for name in ("check", "level", "looks for"):
            table.add_column(name, no_wrap=name != "looks for")
        for check in CHECKS:
            table.add_row(check.code, f"[{_STYLES[check.level]}]{check.level}[/]", escape(check.sentence))
        print_table(table)
        context.exit()


@click.command()
@click.argument("source", nargs=-1, required=True)
@click.option("--only", multiple=True, metavar="CHECK", help="Make this check only; may be repeated.")
@click.option("--skip", multiple=True, metavar="CHECK", help="Leave this check out; may be repeated.")
@click.option("--no-frames", is_flag=True, help="Look at values only: much faster.")
@option(DoctorOptions, "sample")
@option(DoctorOptions, "workers", default=None, show_default="one")
@option(DoctorOptions, "engine")
@option(DoctorOptions, "address")
@click.option(
    "--fail-on",
    type=click.Choice([*reversed(LEVELS), "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 if anything of this level or above is found.",
)
@click.option(
    "--select-out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the episodes with findings of the level of --fail-on and above here, as a selection.",
)
@click.option("--all", "tells_all", is_flag=True, help=f"Tell every place, not the first {_MOST_TOLD} of a check.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_checks,
    help="List all checks and exit.",
)
@layout_options
@reach_option
def command(source: tuple[str, ...], **options: Any) -> None:
    """Look for what is wrong with episodes: cameras, values, motion, time, instructions, copies.

    SOURCE is a dataset's folder or URL, tars, HDF5 files, or a LeRobot data set. Exits with 0, or with 1 if anything of
    the level of --fail-on or above is found.
    """
    level = options.pop("fail_on")
    selection, as_json, tells_all = (options.pop(name) for name in ("select_out", "as_json", "tells_all"))
    found = _examined(source, options)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        _show(found, most=None if tells_all else _MOST_TOLD)
    if selection is not None:
        asked: Level = level if level in get_args(Level) else "error"
        num = found.select(selection, asked)
        above = "" if asked == "error" else " and above"
        click.echo(f"{selection}: {count_text(num, 'episode')} with findings of level {asked}{above}", err=as_json)
    sys.exit(1 if level != "never" and found.at_least(level) else 0)


def _examined(source: Sequence[str], options: dict[str, Any]) -> Diagnosis:
    layout = wanted_layout(options.pop("layout"), options.pop("layout_file"))
    access = storage_options(options.pop("options_json"))
    bar = StageBar()

    def show(num_done: int, num_total: int) -> None:
        bar.begin("examining episodes")
        bar.update(num_done, num_total, f"{num_done:,}/{num_total:,}")

    with quiet("epistream"), bar:
        bar.begin("opening")
        return doctor(
            source[0] if len(source) == 1 else list(source),
            storage_options=access,
            layout=layout,
            frames=not options.pop("no_frames"),
            progress=show,
            **options,
        )


def _show(found: Diagnosis, most: int | None) -> None:
    console = report_console()
    by_code: dict[str, list[Finding]] = {}
    for level in reversed(LEVELS):
        for one in found.findings:
            if one.level == level:
                by_code.setdefault(one.code, []).append(one)
    sentences = {check.code: check.sentence for check in CHECKS}
    for code, some in by_code.items():
        title = Text.assemble((f"{some[0].level:<8}", _STYLES[some[0].level]), (code, "bold"), f": {sentences[code]}")
        console.print(title)
        alike = _alike(some)
        for group in alike[:most]:
            _print_line(console, _place(group))
        if most is not None and len(alike) > most:
            _print_line(console, _more([one for group in alike[most:] for one in group]))
        _print_line(console, f"-> {some[0].advice}", style="dim")
        console.print()
    _summary(console, found)


def _print_line(console: Console, text: str, style: str = "") -> None:
    """Indented, and folded at words in a window; one line where it is read by programs."""
    lines = [f"  {text}"]
    if console.is_terminal:
        lines = textwrap.wrap(
            text,
            console.width,
            initial_indent="  ",
            subsequent_indent="     ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    for line in lines:
        console.print(Text(line, style=style), soft_wrap=True)


def _alike(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings of a check, those together that say the same of several episodes."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.place.feature, one.place.text), []).append(one)
    return list(groups.values())


def _place(group: Sequence[Finding]) -> str:
    one, where = group[0], []
    place = one.place
    if len(group) > 1:
        numbers = [f"{other.place.episode}" for other in group]
        more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
        where.append(f"episodes {', '.join(numbers[:_MOST_NAMED])}{more}")
    elif place.episode is not None:
        names = ":".join(name for name in (one.source.rpartition("/")[2], one.path.strip("/")) if name)
        where.append(f"episode {place.episode}" + (f" ({names})" if names else ""))
    where += [place.feature] if place.feature else []
    text = f"{', '.join(where)}: {place.text}" if where else place.text
    keep = f"; keep {place.keep[0]}:{place.keep[1]}" if place.keep else ""
    return printable(f"{text}{keep}", " ")


def _more(rest: Sequence[Finding]) -> str:
    episodes = {one.place.episode for one in rest} - {None}
    of = f", in {count_text(len(episodes), 'episode')}" if episodes and len(episodes) < len(rest) else ""
    return f"and {len(rest):,} more{of}; --all tells them"


def _summary(console: Console, found: Diagnosis) -> None:
    said = [count_text(num, level) for level, num in found.counts.items() if num and level != "info"]
    said += [f"{found.counts['info']:,} for information"] if found.counts["info"] else []
    looked = [count_text(found.num_episodes, "episode"), count_text(found.num_steps, "step")]
    looked += [count_text(len(found.cameras), "camera")] if found.cameras else []
    text = f"{', '.join(said) or 'nothing found'}: {', '.join(looked)}, {count_text(len(found.checks), 'check')}"
    console.print(Text(text))
