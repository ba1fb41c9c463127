"""One picture of an episode for a person to look at: cameras down, time across, and curves of its arrays below them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from epistream.errors import OptionError
from epistream.sharding.check.curves import Span, draw_curves
from epistream.sharding.check.inspect import EpisodeFrames
from epistream.sharding.check.texts import FAINT, INK, PAPER, fitted, folded, font_of
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.feature_sets import Wanted, choose_features, matching
from epistream.sharding.format.features import IMAGES, Feature
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.units import count_text

# Reads rows of one feature of the episode: (n, *shape) at n steps.
Read = Callable[[Feature, Sequence[int]], NDArray[Any]]

_CELL_WIDTH, _CELL_HEIGHT = 240, 240  # largest; a cell keeps its camera's proportions
_GAP, _MARGIN = 6, 14
_TITLE_SIZE, _LABEL_SIZE = 18, 13
_MOST_LABEL_WIDTH = 190
_LEAST_PLOT_WIDTH = 520
# Of what curves are drawn unless somebody says: a state or what stands for it, actions, and anything at last.
_STATES, _OTHER_STATES, _MOST_OTHER_STATES = "observation.state*", "observation.*", 3
_MOST_CURVES = 6


def contact_sheet(
    dataset: Dataset, episode: int, read: Read, num_columns: int = 8, wanted: Wanted | None = None
) -> Image.Image:
    """All cameras of an episode at evenly spaced steps, first and last included, upright; states and actions below.

    Depth and other single-channel pictures are shown grey, stretched between the 1st and 99th percentile.

    Args:
        dataset: Where from.
        episode: Position in the dataset, from 0.
        read: Reads of that episode.
        num_columns: Most steps to show, at least 1.
        wanted: Names and patterns of cameras and arrays to show instead.

    Raises:
        OptionError: If there is no such episode, or nothing to show.
        SourceError: If something cannot be read.
        FormatError: If a frame does not decode.
    """
    chosen = choose_features(dataset.features, wanted)
    cameras = [feature for feature in chosen.values() if feature.kind == "frames"]
    arrays = _arrays(chosen, everything=wanted is not None)
    if not (cameras or arrays) or num_columns < 1:
        raise OptionError(
            f"{dataset.url}: {len(cameras)} cameras and {len(arrays)} arrays in {num_columns} columns, wanted at least "
            "one of them, and one column."
        )
    about = EpisodeFrames(dataset, episode)
    steps = sorted({round(at) for at in np.linspace(0, about.length - 1, num_columns)})
    rows = [[_picture(_upright(frame, camera)) for frame in read(camera, steps)] for camera in cameras]
    title = f"episode {episode} ({about.key}), {count_text(about.length, 'step')}"
    if dataset.splits != (NO_SPLIT,):
        title += f", {dataset.splits[int(dataset.episode_split[episode])]}"
    curves = [(_array_title(array), read(array, range(about.length))) for array in arrays[:_MOST_CURVES]]
    if len(arrays) > _MOST_CURVES:
        title += f"; {_MOST_CURVES} of {len(arrays)} arrays, --feature shows others"
    return _draw((title, " | ".join(about.meta.tasks)), list(zip(cameras, rows, strict=True)), curves, steps)


def _arrays(features: Mapping[str, Feature], *, everything: bool) -> list[Feature]:
    arrays = {name: feature for name, feature in features.items() if feature.kind == "array"}
    if everything:
        return list(arrays.values())
    flat = [name for name, feature in arrays.items() if len(feature.shape) <= 1]
    states = matching(flat, [_STATES]) or matching(flat, [_OTHER_STATES])[:_MOST_OTHER_STATES]
    return [arrays[name] for name in matching(flat, [*states, "action", "action*"]) or flat]


def _array_title(array: Feature) -> str:
    shape = "x".join(map(str, array.shape)) or "a number"
    return f"{array.name} ({shape}, {array.dtype})" + (f" in {array.units}" if array.units else "")


def _upright(frame: NDArray[Any], camera: Feature) -> NDArray[Any]:
    return frame[::-1, ::-1] if camera.rotate == 180 else frame


def _picture(frame: NDArray[Any]) -> Image.Image:
    """An 8-bit picture of any frame, in the size of a cell."""
    if frame.shape[2] in (1, 2) or frame.dtype != np.uint8:
        image = Image.fromarray(_stretched(frame[..., 0].astype(np.float64))).convert("RGB")
    else:
        image = Image.fromarray(np.ascontiguousarray(frame[..., :3]))
    scale = min(_CELL_WIDTH / image.width, _CELL_HEIGHT / image.height)
    # Enlarging by whole factors keeps the pixels of small cameras visible as pixels.
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if scale >= 1:
        factor = int(scale)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image.resize(size, Image.Resampling.LANCZOS)


def _stretched(grey: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Values from the 1st to the 99th percentile as 0 to 255; what is not finite is black."""
    known = grey[np.isfinite(grey)]
    low, high = np.percentile(known, [1, 99]) if known.size else (0.0, 1.0)
    clipped = np.nan_to_num(np.clip((grey - low) / max(high - low, 1e-9), 0, 1))
    return (clipped * 255).astype(np.uint8)


def _draw(
    titles: tuple[str, str],
    rows: Sequence[tuple[Feature, Sequence[Image.Image]]],
    curves: Sequence[tuple[str, NDArray[Any]]],
    steps: Sequence[int],
) -> Image.Image:
    title_font, font = font_of(_TITLE_SIZE), font_of(_LABEL_SIZE)
    labels = [_camera_label(camera) for camera, _ in rows]
    texts = [line for lines in labels for line in lines] + ["-0.0000"]
    left = _MARGIN + round(max(map(font.getlength, texts))) + 2 * _GAP
    cell_width = max((images[0].width for _, images in rows), default=0)
    width = max(len(steps) * (cell_width + _GAP), _LEAST_PLOT_WIDTH)
    plots = [draw_curves(name, values, Span(left, width - _GAP, steps)) for name, values in curves]
    top = _MARGIN + (2 if titles[1] else 1) * (_TITLE_SIZE + _GAP) + _LABEL_SIZE + 2 * _GAP
    heights = [
        max(images[0].height, len(lines) * (_LABEL_SIZE + 3)) for (_, images), lines in zip(rows, labels, strict=True)
    ]
    height = top + sum(height + _GAP for height in heights) + sum(plot.height + 2 * _GAP for plot in plots) + _MARGIN
    sheet = Image.new("RGB", (left + width + _MARGIN, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (text, colour) in enumerate(zip(titles, (INK, FAINT), strict=True)):
        place = (_MARGIN, _MARGIN + number * (_TITLE_SIZE + _GAP))
        draw.text(place, fitted(text, title_font, sheet.width - 2 * _MARGIN), colour, title_font)
    for column, step in enumerate(steps if rows else ()):
        text = fitted(_step_label(step, rows[0][0].fps), font, cell_width)
        draw.text((left + column * (cell_width + _GAP), top - _LABEL_SIZE - _GAP), text, INK, font)
    for (_, images), lines, row_height in zip(rows, labels, heights, strict=True):
        for number, (line, colour) in enumerate(lines.items()):
            draw.text((_MARGIN, top + number * (_LABEL_SIZE + 3)), line, colour, font)
        for column, image in enumerate(images):
            sheet.paste(image, (left + column * (cell_width + _GAP), top))
        top += row_height + _GAP
    for plot in plots:
        top += 2 * _GAP
        sheet.paste(plot, (0, top))
        top += plot.height
    return sheet


def _camera_label(camera: Feature) -> dict[str, tuple[int, int, int]]:
    """Lines and their colours."""
    height, width, channels = camera.shape
    how = f"{camera.codec} {camera.jpeg_channels}" if camera.jpeg_channels else camera.codec
    how += f", groups of {camera.group_steps}" if camera.group_steps else ""
    name = folded(camera.name.removeprefix(IMAGES), font_of(_LABEL_SIZE), _MOST_LABEL_WIDTH)
    lines = [f"{width}x{height} (width x height)", f"{channels} x {camera.dtype}, {how}"]
    lines += [f"turned by {camera.rotate}°"] * bool(camera.rotate)
    return dict.fromkeys(name, INK) | dict.fromkeys(lines, FAINT)


def _step_label(step: int, fps: float | None) -> str:
    return f"step {step}" if fps is None else f"step {step}, {step / fps:.1f} s"
