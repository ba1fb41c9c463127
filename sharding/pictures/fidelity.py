"""What lossy encoding did to frames, as errors that can be summed over processes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PEAK = 255.0


@dataclass
class Fidelity:
    """What lossy encoding did to some frames of one camera.

    Args:
        num_frames: Frames measured.
        squared_error: Sum over them of the mean squared error.
        worst: Largest mean squared error of one frame.
    """

    num_frames: int = 0
    squared_error: float = 0.0
    worst: float = 0.0

    def compare(self, frame: NDArray[Any], decoded: NDArray[Any]) -> None:
        """Measure a frame beside what became of it, both of the same shape."""
        error = float(np.mean((decoded.astype(np.float32) - frame) ** 2))
        self.add(Fidelity(1, error, error))

    def add(self, other: "Fidelity") -> None:
        """Take in the measurements of another process."""
        self.num_frames += other.num_frames
        self.squared_error += other.squared_error
        self.worst = max(self.worst, other.worst)

    @property
    def mean_psnr_db(self) -> float:
        """Of the mean squared error over all measured frames; infinite if nothing was lost."""
        return _psnr(self.squared_error / max(1, self.num_frames))

    @property
    def worst_psnr_db(self) -> float:
        """Of the frame that lost most."""
        return _psnr(self.worst)


def _psnr(squared_error: float) -> float:
    return float(10 * np.log10(_PEAK**2 / squared_error)) if squared_error > 0 else float("inf")
