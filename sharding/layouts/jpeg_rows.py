"""JPEG files stored as rows of a dataset: where each ends, and the bytes up to there."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from epistream.errors import LayoutError

END_MARKER = b"\xff\xd9"


def row_bytes(row: Any) -> bytes:
    """One row as bytes: of a padded uint8 array, a fixed-length string or a variable-length one."""
    if isinstance(row, np.ndarray):
        return row.tobytes()
    return row if isinstance(row, bytes) else bytes(row)


def true_end(row: bytes, announced: Sequence[int], where: str) -> int:
    """Where the JPEG in a padded row ends.

    The end marker decides. Announced lengths only help where something other than zeros follows the picture: the
    files do not say which announced row belongs to which camera (ACT++ writes them in alphabetical order, Mobile
    ALOHA in recording order), so every one is a candidate, and one counts if it ends on an end marker.

    Args:
        row: The padded bytes.
        announced: The lengths that the file gives for this step, one a camera.
        where: Names the row in messages.

    Raises:
        LayoutError: If there is no end marker: an unwritten or truncated frame.
    """
    last = row.rfind(END_MARKER) + len(END_MARKER)
    if last < len(END_MARKER):
        what = "only zeros" if not any(row) else "no JPEG end marker (FF D9)"
        raise LayoutError(f"{where}: {len(row):,} bytes with {what}, wanted a whole JPEG: the frame was cut off")
    if last in announced or not row[last:].strip(b"\0"):
        return last
    ends = [end for end in announced if row[max(0, end - 2) : end] == END_MARKER]
    return max(ends, default=last)
