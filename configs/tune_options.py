"""What `epistream tune` is told: apart from the tuner, so that the command's help needs no torch."""

from dataclasses import dataclass
from typing import Annotated

from epistream.options import Range, check

_Number = Annotated[int, Range(gt=0)]
_Amount = Annotated[float, Range(gt=0)]


@dataclass(frozen=True)
class TuneOptions:
    """What the user says.

    Args:
        ranks: training processes on this node.
        nodes: nodes of the job.
        target: windows/s that this node's training takes; as many as possible if None.
        seconds: length of each measurement.

    Raises:
        OptionError: a number that is not above 0.
    """

    ranks: _Number = 1
    nodes: _Number = 1
    target: _Amount | None = None
    seconds: _Amount = 1.5

    def __post_init__(self) -> None:
        check(self, "tune ")
