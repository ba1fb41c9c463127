"""What is measured side by side: a scenario, warm or cold, on so many ranks."""

from dataclasses import dataclass

from peers.contender import Contender
from peers.contenders import CONTENDERS
from peers.data import SCENARIOS, Scenario

BOUND, FLOOR = "bound", "torch alone"


@dataclass(frozen=True)
class Group:
    """One table of the results.

    Attributes:
        name: its heading.
        scenario: the windows.
        num_ranks: processes of a data-parallel job that read at the same time.
        is_cold: files are not in the page cache, and the clock runs from the start.
    """

    name: str
    scenario: Scenario
    num_ranks: int = 1
    is_cold: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether everybody takes part, not only each loader's main form."""
        return self.name == self.scenario.name

    def contenders(self) -> list[Contender]:
        """Who takes part."""
        fitting = [c for c in CONTENDERS if c.fits(self.scenario) and (self.is_plain or c.in_ranks)]
        return [c for c in fitting if not (self.is_cold and c.is_prepared)]

    def extra(self) -> list[str]:
        """What is measured beside the contenders."""
        if self.is_plain:
            return [BOUND]
        return [] if self.is_cold else [FLOOR]


_FULL = SCENARIOS["480x640-jpeg"]
GROUPS = (
    *(Group(name, scenario) for name, scenario in SCENARIOS.items()),
    Group("480x640-jpeg, cold", _FULL, is_cold=True),
    *(Group(f"480x640-jpeg, ranks: {count}", _FULL, num_ranks=count) for count in (1, 2, 4)),
)
