"""Curves of an array feature over an episode, for a person to look at: a line a dimension, gaps where it is NaN."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from epistream.sharding.check.texts import FAINT, INK, PAPER, Font, fitted, font_of

# Dark enough on white for thin lines, and neighbours far apart.
_COLOURS = (
    *("#1f5fb4", "#d62728", "#1a8a1a", "#8a2be2", "#d06000", "#7a4a3a", "#c2188a", "#4d4d4d"),
    *("#007f8c", "#808000", "#000075", "#e0407f", "#006400", "#a06a00", "#4b0082", "#2f8fdf"),
)
MOST_DIMS = len(_COLOURS)

_HEIGHT, _TEXT, _GAP = 170, 12, 6
_FINE = 3  # drawn so much larger and then reduced, for smooth lines
_LEGEND = 17


@dataclass(frozen=True)
class Span:
    """What a plot lies over: its left edge and width in pixels, and the steps whose frames stand above it."""

    left: int
    width: int
    steps: Sequence[int]


def draw_curves(title: str, values: NDArray[Any], span: Span) -> Image.Image:
    """A plot as wide as `span` ends, with its title above, the values' range at its left and a legend below.

    Args:
        title: The feature's name, and what else is to be said of it.
        values: (T, ...) of an episode of T steps.
        span: Where it lies.
    """
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    num_dims = rows.shape[1]
    shown = rows[:, :MOST_DIMS]
    font = font_of(_TEXT)
    swatches = _legend(num_dims, font, span.width)
    top = _TEXT + 2 * _GAP
    height = top + _HEIGHT + _TEXT + 2 * _GAP + len(swatches) * _LEGEND + _GAP
    panel = Image.new("RGB", (span.left + span.width, height), PAPER)
    draw = ImageDraw.Draw(panel)
    low, high = _range(shown)
    notes = [] if num_dims <= MOST_DIMS else [f"first {MOST_DIMS} of {num_dims:,} dimensions"]
    missing = int((~np.isfinite(rows)).sum())
    notes += [f"{missing:,} of {rows.size:,} values are NaN or infinite"] * bool(missing)
    draw.text((span.left, 0), fitted(", ".join([title, *notes]), font, span.width), INK, font)
    panel.paste(_plot(shown, (low, high), span), (span.left, top))
    for value, y in ((high, top), ((low + high) / 2, top + _HEIGHT / 2), (low, top + _HEIGHT)):
        draw.text((span.left - _GAP, y), _number(value, high - low), INK, font, anchor="rm")
    taken = -1.0
    for step in span.steps:
        x = span.left + _x(step, len(rows), span.width)
        half = font.getlength(str(step)) / 2
        x_text = min(max(x, span.left + half), span.left + span.width - half)
        if x_text - half > taken:
            draw.text((x_text, top + _HEIGHT + _GAP), str(step), INK, font, anchor="ma")
            taken = x_text + half + _GAP
    draw.text((span.left - _GAP, top + _HEIGHT + _GAP), "step", FAINT, font, anchor="ra")
    y = top + _HEIGHT + _TEXT + 2 * _GAP
    for line in swatches:
        for x, dim in line:
            draw.rectangle((span.left + x, y + 4, span.left + x + 12, y + 9), _COLOURS[dim])
            draw.text((span.left + x + 16, y), str(dim), INK, font)
        y += _LEGEND
    return panel


def _plot(rows: NDArray[np.float64], ends: tuple[float, float], span: Span) -> Image.Image:
    """The lines in their frame."""
    width, height = span.width * _FINE, _HEIGHT * _FINE
    plot = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(plot)
    for step in span.steps:
        x = _x(step, len(rows), span.width) * _FINE
        draw.line((x, 0, x, height), "#dddddd", _FINE)
    low, high = ends

    def at(value: float) -> float:
        return 2 * _FINE + (high - value) / (high - low) * (height - 4 * _FINE)

    if low < 0 < high:
        draw.line((0, at(0), width, at(0)), "#bbbbbb", _FINE)
    places = [_x(step, len(rows), span.width) * _FINE for step in range(len(rows))]
    for dim in range(rows.shape[1]):
        column, colour = rows[:, dim], _COLOURS[dim]
        known = np.flatnonzero(np.isfinite(column))
        for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
            points = [(places[step], at(column[step])) for step in run.tolist()]
            if len(points) == 1:  # between gaps, or the only step
                (x, y), radius = points[0], 3 * _FINE
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
            elif points:
                draw.line(points, colour, round(2 * _FINE), "curve")
    draw.rectangle((0, 0, width - 1, height - 1), outline="#777777", width=_FINE)
    return plot.resize((span.width, _HEIGHT), Image.Resampling.LANCZOS)


def _x(step: int, length: int, width: int) -> float:
    return 4 + (width - 8) * (step / (length - 1) if length > 1 else 0.5)


def _range(rows: NDArray[np.float64]) -> tuple[float, float]:
    """The finite values' smallest and largest; some room about them where they are one."""
    known = rows[np.isfinite(rows)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    room = (high - low) * 0.02 or abs(low) * 0.1 or 1.0
    return low - room, high + room


def _number(value: float, span: float) -> str:
    """With so many digits that the ends of the range differ."""
    if not 1e-3 <= span < 1e6:
        return f"{value:.3g}"
    return f"{value:.{max(0, min(6, 2 - int(np.floor(np.log10(span)))))}f}"


def _legend(num_dims: int, font: Font, width: int) -> list[list[tuple[int, int]]]:
    """Lines of (x, dimension)."""
    if num_dims == 1:
        return []
    lines: list[list[tuple[int, int]]] = [[]]
    x = 0
    for dim in range(min(num_dims, MOST_DIMS)):
        size = 16 + round(font.getlength(str(dim))) + 14
        if x + size > width and lines[-1]:
            lines.append([])
            x = 0
        lines[-1].append((x, dim))
        x += size
    return lines
