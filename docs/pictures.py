"""Draws the pictures of concepts.md, from real frames and from the orders that the library really makes.

python docs/pictures.py [--out docs/pictures]
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")

from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

import epistream as es
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import Plan
from epistream.loader.order.schedule import Schedule
from epistream.loader.order.world import World

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "data"
INK, SOFT, PALE = "#333333", "#8a8a8a", "#f3f3f3"
BLUE, ORANGE, TEAL = "#1f77b4", "#e08a2e", "#2a9d8f"
SHARDS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#e15759", "#76b7b2")


def canvas(width: float, height: float, cell_inches: float) -> tuple[Any, Any]:
    """A figure whose axes count in cells, y downwards."""
    figure = plt.figure(figsize=(width * cell_inches, height * cell_inches), dpi=170)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def write(axes: Any, x: float, y: float, text: str, **style: Any) -> None:
    """Text; left and middle unless told otherwise."""
    style = {"color": INK, "fontsize": 8.5, "ha": "left", "va": "center", **style}
    axes.text(x, y, text, **style)


def cell(axes: Any, x: float, y: float, text: str = "", color: str = BLUE, **style: Any) -> None:
    """A filled square with a number in it; ``is_pad`` draws it as a repeat from elsewhere."""
    is_pad, width, height = style.get("is_pad", False), style.get("width", 1.0), style.get("height", 0.8)
    box = Rectangle(
        (x + 0.05, y + 0.05),
        width - 0.1,
        height - 0.1,
        facecolor="white" if is_pad else color,
        edgecolor=color,
        hatch="////" if is_pad else None,
        linewidth=1.2,
        linestyle="--" if is_pad else "-",
        alpha=0.55 if is_pad else 1.0,
    )
    axes.add_patch(box)
    write(
        axes,
        x + width / 2,
        y + height / 2,
        text,
        ha="center",
        fontsize=style.get("fontsize", 8),
        color=color if is_pad else "white",
        fontweight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8} if is_pad else None,
    )


def panel(axes: Any, x: float, y: float, width: float, height: float, title: str = "", **style: Any) -> None:
    """A rounded box with a title inside its upper edge."""
    box = FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.18",
        facecolor=style.get("face", PALE),
        edgecolor=style.get("edge", "#c8c8c8"),
        linewidth=1,
    )
    axes.add_patch(box)
    write(axes, x + 0.25, y + 0.42, title, color=style.get("edge", SOFT), fontweight="bold", fontsize=8)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], color: str = SOFT, **style: Any) -> None:
    """From one place to another."""
    patch = FancyArrowPatch(
        start,
        end,
        arrowstyle=style.get("head", "-|>"),
        connectionstyle=f"arc3,rad={style.get('bend', 0)}",
        mutation_scale=10,
        color=color,
        linewidth=1.3,
        shrinkA=0,
        shrinkB=0,
    )
    axes.add_patch(patch)


def window_picture(out: Path) -> None:
    """An episode, and the windows at its begin, in its middle and at its end."""
    source = EXAMPLES / "aloha" / "episode_0.hdf5"
    window = es.Window(obs=range(-1, 1), action=range(4))
    stream = es.EpisodeStream(source, features=["observation.images.top", "action"], window=window)
    length = int(stream.job.dataset.episode_length[0])
    left = 3.6
    runs = [(-1, 3), (39, 43), (77, 81)]  # of steps; -1, 80 and 81 lie outside of the episode
    place, x = {}, left
    for first, last in runs:
        place |= {step: x + step - first for step in range(first, last + 1)}
        x += last - first + 1.6
    figure, axes = canvas(x + 3.0, 10.9, 0.42)
    write(axes, 0.3, 1.45, "episode 0", fontweight="bold")
    write(axes, 0.3, 1.95, f"{length} steps, camera top", color=SOFT, fontsize=7.5)
    for step, at in place.items():
        if 0 <= step < length:
            frame = stream.read(0, step)["observation.images.top"][0, -1].numpy()
            axes.imshow(frame[105:405:4, 80:560:4], extent=(at + 0.02, at + 0.98, 2.05, 1.3), aspect="auto")
            write(axes, at + 0.5, 0.85, str(step), ha="center", color=SOFT, fontsize=7.5)
    axes.set(xlim=(0, x + 3.0), ylim=(10.9, 0))
    for _, last in runs[:-1]:
        write(axes, place[last] + 1.3, 1.7, "...", ha="center", color=SOFT)
    write(axes, x - 0.2, 0.85, "the masks _is_pad", color=SOFT, fontsize=7.5)
    for number, anchor in enumerate((0, 40, 78)):
        y = 3.3 + 2.35 * number
        write(axes, 0.3, y - 0.05, f"window at t = {anchor}", fontweight="bold")
        at = place[anchor] + 0.5
        axes.plot([at, at], [2.25, y - 0.2], color=SOFT, linewidth=0.9, linestyle=":", zorder=0)
        axes.plot([at], [y - 0.15], marker="v", color=INK, markersize=5)
        names = (("observation", "observation.images.top", BLUE), ("action chunk", "action", ORANGE))
        for row, (name, key, color) in enumerate(names):
            write(axes, left - 0.35, y + 0.45 + 0.82 * row, name, ha="right", color=color)
            steps, is_pad = window.steps(key, np.array([anchor]), np.array([length]))
            for offset, step, padded in zip(window.offsets(key), steps[0].tolist(), is_pad[0].tolist(), strict=True):
                cell(axes, place[anchor + offset], y + 0.05 + 0.82 * row, str(step), color, is_pad=padded)
            mask = " ".join(str(bool(value))[0] for value in is_pad[0].tolist())
            write(axes, x - 0.2, y + 0.45 + 0.82 * row, mask, color=color, fontsize=9, family="monospace")
    cell(axes, left, 10.05, "0", SOFT, is_pad=True, width=0.8, height=0.65)
    text = "outside of the episode: the nearest step again (pad='edge'), or zeros (pad='zero')"
    write(axes, left + 1.0, 10.38, text, color=SOFT, fontsize=7.5)
    figure.savefig(out / "window.png")


def order_picture(out: Path) -> None:
    """Six shards of four windows, two lanes, four resident shards: the example of order.md, drawn."""
    options = OrderOptions(seed=7, lanes=2, resident_shards=4)
    plan = Plan(np.full(6, 4), shard_bytes=np.full(6, 10**8), shard_episodes=np.full(6, 2), options=options)
    epoch = plan.epoch(0)
    figure, axes = canvas(30.6, 16.2, 0.345)
    left = 5.9

    def windows(x: float, y: float, shard: Any, number: Any, width: float = 1.0) -> None:
        _windows(axes, (x, y), shard, number, width)

    def heading(y: float, name: str, note: str) -> None:
        write(axes, 0.3, y, name, fontweight="bold")
        write(axes, 0.3, y + 0.45, note, color=SOFT, fontsize=7, va="top")

    heading(1.1, "the dataset", "6 shards of 4 windows,\nshard.window")
    for s in range(6):
        windows(left + 4.06 * s, 0.95, np.full(4, s), np.arange(4))
        write(axes, left + 4.06 * s + 2, 0.5, f"shard {s}", ha="center", color=SHARDS[s], fontsize=7.5)

    heading(3.4, "lanes", "the seed deals the shards\nto them, once")
    starts = (left, left + 12.3)
    for lane, x in enumerate(starts):
        panel(axes, x - 0.15, 2.7, 12.15, 2.25, f"lane {lane}")
        for i, s in enumerate(plan.lanes().pieces(lane).shard.tolist()):
            windows(x + 3.96 * i, 3.75, np.full(4, s), np.arange(4), 0.98)

    heading(7.0, "segments", "each mixes two shards;\nanew in every epoch")
    for lane, x in enumerate(starts):
        arrow(axes, (x + 5.9, 5.0), (x + 5.9, 6.1))
        for segment in range(2):
            _, shard, number = epoch.lane(lane).build(segment)
            at = x + 6.1 * segment
            panel(axes, at - 0.15, 6.2, 6.05, 2.25, f"segment {segment}")
            windows(at, 7.25, shard, number, 0.96)

    heading(10.1, "the epoch", "a window of each lane\nin turn")
    shard, number = epoch.windows(np.arange(24))
    for x, end in zip(starts, (left + 0.5, left + 1.5), strict=True):
        arrow(axes, (x + 2.9, 8.5), (end, 9.85))
    windows(left, 9.95, shard, number)
    for batch in range(6):
        x = left + 4 * batch
        axes.plot([x + 0.1, x + 0.1, x + 3.9, x + 3.9], [10.85, 11.05, 11.05, 10.85], color=SOFT, linewidth=1)
        write(axes, x + 2, 11.45, f"global batch {batch}", ha="center", color=SOFT, fontsize=7)

    heading(12.8, "ranks and workers", "2 nodes with a rank each,\n2 windows a batch,\n2 workers a rank")
    for rank, color in enumerate((BLUE, ORANGE)):
        y = 12.3 + 1.85 * rank
        panel(axes, left - 0.15, y, 24.35, 1.7, face="white", edge=color)
        schedule = Schedule(24, 2, seed=7, epoch=0, start=0, world=World.of(rank, 2, local_size=1), batch_size=2)
        for batch in range(schedule.num_batches):
            mine = schedule.positions(batch)[0]
            windows(left + 4 * batch + 1.95, y + 0.75, shard[mine], number[mine])
            write(axes, left + 4 * batch + 1.95, y + 0.42, f"worker {batch % 2}", color=SOFT, fontsize=7)
        write(axes, left + 0.15, y + 0.85, f"rank {rank}", color=color, fontsize=8, fontweight="bold")
    figure.savefig(out / "order.png")


def _windows(axes: Any, place: tuple[float, float], shard: Any, number: Any, width: float) -> None:
    """Windows side by side, each named by its shard and its number in that."""
    for i, (s, k) in enumerate(zip(shard.tolist(), number.tolist(), strict=True)):
        cell(axes, place[0] + i * width, place[1], f"{s}.{k}", SHARDS[s], fontsize=6.5, width=width)


def cache_picture(out: Path) -> None:
    """Four ranks of a node, their workers, and the one copy of the shards that they read."""
    figure, axes = canvas(27, 13.2, 0.38)
    write(axes, 0.5, 0.7, "storage", fontweight="bold")
    write(axes, 0.5, 1.2, "s3://, https://, NFS", color=SOFT, fontsize=7.5)
    for s in range(6):
        cell(axes, 0.6, 1.8 + 1.2 * s, f"shard {s}", SHARDS[s], width=3.0, height=1.0)
    write(axes, 2.1, 9.3, "···", ha="center", color=SOFT)

    panel(axes, 5.9, 0.4, 20.6, 12.3, "node", face="#fbfbfb", edge=SOFT)
    panel(axes, 6.6, 1.5, 6.2, 8.2, "cache, in /dev/shm", face="white", edge=TEAL)
    held = {1: 2, 4: 1, 2: 3, 0: 0}
    for row, (s, leases) in enumerate(held.items()):
        y = 2.5 + 1.55 * row
        cell(axes, 7.0, y, f"shard {s}", SHARDS[s], width=3.0, height=1.2)
        note = f"{leases} lease" + "s" * (leases != 1) if leases else "no lease:\nthe next to go"
        write(axes, 10.25, y + 0.6, note, color=SOFT if leases else "#b03a2e", fontsize=7.5)
    write(axes, 7.0, 9.1, "within a budget of bytes", color=TEAL, fontsize=7.5)

    arrow(axes, (3.75, 7.1), (6.9, 5.0), color=SHARDS[4])
    write(axes, 3.85, 5.3, "filled once,\nby whoever\nmissed it", color=SHARDS[4], fontsize=7.5)

    readers = {0: (1, 2), 1: (1, 2), 2: (2,), 3: (4,)}
    where = {s: 3.1 + 1.55 * row for row, s in enumerate(held)}
    for rank in range(4):
        y = 0.9 + 2.9 * rank
        panel(axes, 16.2, y, 9.7, 2.6, f"rank {rank}", face="white", edge=BLUE)
        for worker in range(2):
            cell(axes, 16.6, y + 0.8 + 0.85 * worker, f"worker {worker}", BLUE, width=2.6, height=0.75, fontsize=7)
        for slot in range(4):
            full = slot < 2
            cell(
                axes,
                20.0 + 0.95 * slot,
                y + 1.15,
                "",
                ORANGE if full else "#d9d9d9",
                width=0.95,
                height=0.9,
            )
        write(axes, 20.0, y + 0.7, "ring of batches", color=ORANGE, fontsize=7)
        arrow(axes, (19.25, y + 1.6), (19.95, y + 1.6), color=SOFT)
        arrow(axes, (23.85, y + 1.6), (24.45, y + 1.6), color=SOFT)
        write(axes, 24.5, y + 1.6, "train", fontsize=7.5, fontweight="bold")
        for number, s in enumerate(readers[rank]):
            arrow(axes, (12.3, where[s]), (16.5, y + 1.2 + 0.85 * number), color=SHARDS[s], bend=0.05)
    write(axes, 13.05, 1.75, "leased,\nnot copied", color=SOFT, fontsize=7.5)
    write(
        axes,
        6.7,
        10.35,
        "One copy, however many processes read it.\nA lease ends with its process, however that ends.\n"
        "Files on a local disk are read in place:\ntheir one copy is the page cache.",
        color=SOFT,
        fontsize=7.5,
        va="top",
    )
    figure.savefig(out / "cache.png")


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for picture in (window_picture, order_picture, cache_picture):
        picture(out)


if __name__ == "__main__":
    main()
