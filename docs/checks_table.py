"""Writes the table of checks in docs/doctor.md from their registry; a test says whether it is as it should be.

python docs/checks_table.py
"""

from pathlib import Path

from epistream.loader.doctor.checks.registry import CHECKS

PAGE = Path(__file__).resolve().parent / "doctor.md"
FIRST, LAST = "<!-- checks -->\n", "<!-- /checks -->\n"


def table() -> str:
    """The table."""
    rows = [f"| `{one.code}` | {one.level} | {one.sentence} | {one.advice} |" for one in CHECKS]
    return "\n".join(["| check | level | looks for | advice |", "| --- | --- | --- | --- |", *rows]) + "\n"


def page(text: str) -> str:
    """The page with the table as it should be."""
    before, _, rest = text.partition(FIRST)
    return f"{before}{FIRST}{table()}{LAST}{rest.partition(LAST)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
