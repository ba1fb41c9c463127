"""What verifying finds: one thing that is not as it should be."""

from dataclasses import dataclass

from epistream.errors import EpistreamError


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it should be: where, what was found, what was wanted."""

    file: str
    member: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.file}{', ' if self.member else ''}{self.member}: {self.found}, wanted {self.wanted}"


def fault_of(file: str, error: EpistreamError) -> Fault:
    """An error of ours as a fault: its text says found and wanted itself."""
    text = str(error)
    found, _, wanted = text.partition(", wanted ")
    head, _, rest = found.rpartition("/")
    found = rest if head and rest.startswith(file) else found
    return Fault(file, "", found.removeprefix(file).lstrip(":, ").rstrip("."), (wanted or "it to be whole").rstrip("."))
