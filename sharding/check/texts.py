"""Texts in pictures: fonts, and long ones made to fit."""

from functools import cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (90, 90, 90)


@cache
def font_of(size: int) -> Font:
    """Pillow's own, of so many pixels."""
    return ImageFont.load_default(size)


def fitted(text: str, font: Font, width: float) -> str:
    """`text`, cut so that it fits. Control characters would break the line."""
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def folded(text: str, font: Font, width: float) -> list[str]:
    """`text` in lines that fit, cut behind a dot, dash or underscore where there is one."""
    lines = []
    while font.getlength(text) > width:
        fits = next(n for n in range(len(text) - 1, 0, -1) if n == 1 or font.getlength(text[:n]) <= width)
        cut = max(text.rfind(sign, 1, fits) for sign in "._- ") + 1
        cut = cut if cut > fits // 3 else fits
        lines.append(text[:cut])
        text = text[cut:]
    return [*lines, text]
