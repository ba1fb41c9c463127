"""One picture of an episode for a person to look at: cameras down, time across, each row and column labelled."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from epistream.errors import OptionError
from epistream.sharding.check.inspect import EpisodeFrames
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.features import Feature
from epistream.sharding.format.opened_dataset import Dataset

_CELL_WIDTH, _CELL_HEIGHT = 240, 240  # largest; a cell keeps its camera's proportions
_GAP, _MARGIN = 6, 14
_TITLE_SIZE, _LABEL_SIZE = 18, 13
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def contact_sheet(dataset: Dataset, episode: int, num_columns: int = 8) -> Image.Image:
    """All cameras of an episode at evenly spaced steps, first and last included, upright.

    Depth and other single-channel pictures are shown grey, stretched between the 1st and 99th percentile.

    Args:
        dataset: Where from.
        episode: Position in the dataset, from 0.
        num_columns: Most steps to show, at least 1.

    Raises:
        OptionError: If there is no such episode, or the dataset has no cameras.
        SourceError: If something cannot be read.
        FormatError: If a frame does not decode.
    """
    cameras = [feature for feature in dataset.features.values() if feature.kind == "frames"]
    if not cameras or num_columns < 1:
        raise OptionError(f"{dataset.url}: {len(cameras)} cameras, {num_columns} columns, wanted at least one of each.")
    frames = EpisodeFrames(dataset, episode)
    steps = sorted({round(at) for at in np.linspace(0, frames.length - 1, num_columns)})
    rows = [[_picture(frames.read(camera, step)) for step in steps] for camera in cameras]
    title = f"episode {episode} ({frames.key}), {frames.length} steps"
    if dataset.splits != (NO_SPLIT,):
        title += f", {frames.meta.split}"
    return _draw(rows, cameras, steps, (title, " | ".join(frames.meta.tasks)))


def _picture(frame: NDArray[Any]) -> Image.Image:
    """An 8-bit picture of any frame, in the size of a cell."""
    if frame.shape[2] in (1, 2) or frame.dtype != np.uint8:
        grey = frame[..., 0].astype(np.float64)
        low, high = np.percentile(grey, [1, 99])
        stretched = np.clip((grey - low) / max(high - low, 1e-9), 0, 1) * 255
        image = Image.fromarray(stretched.astype(np.uint8)).convert("RGB")
    else:
        image = Image.fromarray(np.ascontiguousarray(frame[..., :3]))
    scale = min(_CELL_WIDTH / image.width, _CELL_HEIGHT / image.height)
    # Enlarging by whole factors keeps the pixels of small cameras visible as pixels.
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if scale >= 1:
        factor = int(scale)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image.resize(size, Image.Resampling.LANCZOS)


def _draw(
    rows: Sequence[Sequence[Image.Image]],
    cameras: Sequence[Feature],
    steps: Sequence[int],
    titles: tuple[str, str],
) -> Image.Image:
    title_font, font = ImageFont.load_default(_TITLE_SIZE), ImageFont.load_default(_LABEL_SIZE)
    labels = [_camera_label(camera) for camera in cameras]
    label_width = round(max(font.getlength(line) for lines in labels for line in lines)) + _GAP
    cell_width = max(row[0].width for row in rows)
    header_lines = 2 if titles[1] else 1
    top = _MARGIN + header_lines * (_TITLE_SIZE + _GAP) + _LABEL_SIZE + 2 * _GAP
    width = 2 * _MARGIN + label_width + len(steps) * (cell_width + _GAP)
    height = top + sum(max(row[0].height, 4 * _LABEL_SIZE) + _GAP for row in rows) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (text, colour) in enumerate(zip(titles, (_INK, _FAINT), strict=True)):
        place = (_MARGIN, _MARGIN + number * (_TITLE_SIZE + _GAP))
        draw.text(place, _fit(text, title_font, width - 2 * _MARGIN), colour, title_font)
    left = _MARGIN + label_width
    for column, step in enumerate(steps):
        text = _step_label(step, cameras[0].fps)
        draw.text((left + column * (cell_width + _GAP), top - _LABEL_SIZE - _GAP), text, _INK, font)
    for row, lines in zip(rows, labels, strict=True):
        for number, line in enumerate(lines):
            place = (_MARGIN, top + number * (_LABEL_SIZE + 3))
            draw.text(place, line, _FAINT if number else _INK, font)
        for column, image in enumerate(row):
            sheet.paste(image, (left + column * (cell_width + _GAP), top))
        top += max(row[0].height, 4 * _LABEL_SIZE) + _GAP
    return sheet


def _camera_label(camera: Feature) -> tuple[str, ...]:
    height, width, channels = camera.shape
    how = f"{camera.codec} {camera.jpeg_channels}" if camera.jpeg_channels else camera.codec
    lines = (camera.name.removeprefix("observation.images."), f"{width}x{height}x{channels}", how)
    return (*lines, f"turned by {camera.rotate}°") if camera.rotate else lines


def _step_label(step: int, fps: float | None) -> str:
    return f"step {step}" if fps is None else f"step {step}, {step / fps:.1f} s"


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """`text`, cut so that it fits. Control characters would break the line."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
