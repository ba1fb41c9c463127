"""Draws docs/pictures/rooms.png: the sub-packages, each with its sentence, and who imports whom, as the sources say.

python docs/rooms.py [--out docs/pictures]
"""

import argparse
import ast
import textwrap
from collections import defaultdict
from pathlib import Path

from pictures import BLUE, INK, ORANGE, SOFT, TEAL, arrow, canvas, panel, write

ROOT = Path(__file__).resolve().parent.parent
COLORS = {"sharding": ORANGE, "loader": BLUE, "cache": TEAL}
WIDTH, HEIGHT = 8.2, 2.5  # of a box
STEP_X, STEP_Y = 9.0, 3.5


def sentences() -> dict[str, str]:
    """The first line of every sub-package, by name: ``cache.store``."""
    return {
        ".".join(file.parent.relative_to(ROOT).parts): (ast.get_docstring(ast.parse(file.read_text())) or "")
        for top in COLORS
        for file in sorted((ROOT / top).rglob("__init__.py"))
    }


def imports(rooms: set[str]) -> dict[str, set[str]]:
    """Which sub-package imports which: at once, late, or for types only."""
    found: dict[str, set[str]] = defaultdict(set)
    for here in rooms:
        for file in (ROOT / here.replace(".", "/")).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("epistream."):
                    there = node.module.removeprefix("epistream.").rpartition(".")[0]
                    if there in rooms - {here}:
                        found[here].add(there)
    return found


def reach(graph: dict[str, set[str]], room: str) -> set[str]:
    """A sub-package and all below it."""
    return {room}.union(*(reach(graph, other) for other in graph.get(room, ())))


def place(graph: dict[str, set[str]], rooms: set[str]) -> dict[str, tuple[float, float]]:
    """The left upper corner of every box: a column a folder, what is imported below who imports it."""
    corners: dict[str, tuple[float, float]] = {}
    left = 0.5
    for top in COLORS:
        mine = {room for room in rooms if room.split(".")[0] == top}
        level = {room: len(_longest(graph, room, mine)) for room in mine}
        rows: dict[int, list[str]] = defaultdict(list)
        for room in sorted(mine):
            rows[max(level.values()) - level[room]].append(room)
        for row, names in rows.items():
            for column, room in enumerate(names):
                corners[room] = left + STEP_X * column, 1.9 + STEP_Y * row
        left += STEP_X * max(len(names) for names in rows.values()) + 0.8
    return corners


def _longest(graph: dict[str, set[str]], room: str, within: set[str]) -> list[str]:
    chains = [_longest(graph, other, within) for other in graph.get(room, set()) & within]
    return [room, *max(chains, key=len, default=[])]


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    out = parser.parse_args().out
    said = sentences()
    leaves = [file for file in (ROOT / "epistream").glob("*.py") if not file.name.startswith("_")]
    graph = imports(set(said))
    corners = place(graph, set(said))
    width = max(x for x, _ in corners.values()) + WIDTH + 0.5
    height = max(y for _, y in corners.values()) + HEIGHT + 1.9
    figure, axes = canvas(width, height, 0.3)
    write(axes, 0.5, 0.8, "epistream  ->  configs  ->  loader  ->  cache, sharding", fontweight="bold", fontsize=10)
    write(axes, 18.5, 0.8, "an arrow: imports; never upwards", color=SOFT, fontsize=9)
    for here, others in graph.items():
        below = {one for one in others if one.split(".")[0] == here.split(".")[0]}
        for there in {one for one in below if not any(one in reach(graph, other) for other in below - {one})}:
            (x, y), (to_x, to_y) = corners[here], corners[there]
            start, end = (x + WIDTH / 2, y + HEIGHT), (to_x + WIDTH / 2, to_y)
            arrow(axes, start, end, color=COLORS[here.split(".")[0]])
    for room, (x, y) in corners.items():
        panel(axes, x, y, WIDTH, HEIGHT, room.replace(".", "/") + "/", face="white", edge=COLORS[room.split(".")[0]])
        lines = textwrap.wrap(said[room], 42, break_on_hyphens=False)
        write(axes, x + 0.25, y + 0.8, "\n".join(lines), color=INK, fontsize=7.5, va="top")
    write(
        axes,
        0.5,
        height - 0.8,
        "Leaves that every room may use: " + ", ".join(sorted(file.stem for file in leaves)) + ".",
        color=SOFT,
        fontsize=8,
    )
    figure.savefig(out / "rooms.png")


if __name__ == "__main__":
    main()
