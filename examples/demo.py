"""The main job, end to end, on real episodes: pack, verify, stream on two ranks, prove it, measure it.

make demo                                   # or: python examples/demo.py [--data FOLDER] [--out FOLDER]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

import epistream as es
from epistream.loader.measuring.bench import run_bench
from epistream.loader.measuring.bench_options import BenchOptions

HERE = Path(__file__).resolve().parent
NUM_RANKS, NUM_EPOCHS, BATCH_SIZE, TIMEOUT_S = 2, 2, 8, 120
console = Console()


def run(*command: str) -> None:
    """Run a command as a user would type it."""
    console.print(f"\n[bold]$ {' '.join(command)}[/bold]", highlight=False)
    subprocess.run([sys.executable, "-m", "epistream.commands", *command[1:]], check=True, timeout=TIMEOUT_S)


def stream_on_two_ranks(shards: Path, out: Path, cache_directory: Path) -> tuple[list[dict], int]:
    """Stream with torchrun; returns the reports of the ranks and the most that the cache held, in bytes."""
    script = [str(HERE / "train_ddp.py"), str(shards), str(out), "--cache", "shm"]
    script += ["--cache-directory", str(cache_directory), "--epochs", str(NUM_EPOCHS), "--batch-size", str(BATCH_SIZE)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(NUM_RANKS)]
    console.print(f"\n[bold]$ torchrun --nproc-per-node {NUM_RANKS} examples/train_ddp.py {shards} ...[/bold]")
    job = subprocess.Popen([*torchrun, *script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    peak, deadline = 0, time.monotonic() + TIMEOUT_S
    while job.poll() is None:
        if time.monotonic() > deadline:
            job.kill()
            raise TimeoutError(f"the streaming job did not end within {TIMEOUT_S} s")
        peak = max(peak, cache_bytes(cache_directory))
        time.sleep(0.02)
    if job.returncode:
        raise RuntimeError(f"the streaming job ended with exit code {job.returncode}")
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(NUM_RANKS)], peak


def cache_bytes(directory: Path) -> int:
    """Bytes that a cache directory holds in shared memory; 0 if there is none."""
    total = 0
    try:
        for item in os.scandir(directory):
            total += item.stat().st_blocks * 512
    except FileNotFoundError:  # the last one out removes the directory while we look
        pass
    return total


def prove_exactly_once(reports: list[dict], all_windows: set[tuple[int, int]]) -> list[tuple[str, str]]:
    """Check every epoch: ranks disjoint, nothing twice, nothing missing but the remainder of the last batch."""
    rows = []
    remainder = len(all_windows) % (BATCH_SIZE * NUM_RANKS)
    for epoch in range(NUM_EPOCHS):
        per_rank = [[tuple(window) for window in report["epochs"][epoch]["windows"]] for report in reports]
        seen = Counter(window for windows in per_rank for window in windows)
        shared = set(per_rank[0]) & set(per_rank[1])
        left_out = all_windows - set(seen)
        if shared or max(seen.values()) > 1 or set(seen) - all_windows or len(left_out) != remainder:
            raise AssertionError(f"epoch {epoch}: {len(shared)} windows on both ranks, {len(left_out)} left out")
        counts = " + ".join(str(len(windows)) for windows in per_rank)
        rows.append(
            (f"epoch {epoch}", f"{counts} of {len(all_windows)} windows, 0 twice, {remainder} left over (drop)")
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE / "data" / "aloha", help="folder of HDF5 episodes")
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    parser.add_argument("--rounds", type=int, default=3, help="of measuring throughput")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    shards, sheet = args.out / "shards", args.out / "episode-0.png"
    cache_directory = Path(f"/dev/shm/epistream-demo-{os.getpid()}")

    run("epistream", "pack", str(args.data), str(shards), "--shard-size", "1MiB")
    run("epistream", "verify", str(shards))
    run("epistream", "inspect", str(shards), "--episode", "0", "--image", str(sheet))

    before = cache_bytes(cache_directory)
    reports, peak = stream_on_two_ranks(shards, args.out, cache_directory)
    after = cache_bytes(cache_directory)
    dataset = es.open_dataset(str(shards))
    lengths = dataset.episode_length.tolist()
    proof = prove_exactly_once(reports, {(e, t) for e, length in enumerate(lengths) for t in range(length)})
    fills = sum(report["stats"]["cache"]["fills"] for report in reports)
    hits = sum(report["stats"]["cache"]["hits"] for report in reports)
    if fills != len(dataset.shard_url):
        raise AssertionError(f"{fills} fills of {len(dataset.shard_url)} shards: some shard was fetched twice")
    if after:
        raise AssertionError(f"{cache_directory}: {after} bytes of shared memory were left behind")

    console.print("\n[bold]$ epistream bench ...[/bold]")
    bench = run_bench(str(shards), BenchOptions(batch_size=16, rounds=args.rounds, seconds=args.seconds))

    table = Table(title="The main job", show_header=False)
    for row in proof:
        table.add_row(*row)
    table.add_row("shard fills on the node", f"{fills} for {len(dataset.shard_url)} shards, then {hits} hits")
    table.add_row("shared memory", f"before {before} B, most {peak / 2**20:.1f} MiB, after {after} B")
    for row in bench.rows:
        table.add_row(row.name, f"{row.median:,.0f} windows/s, {row.share_of(bench.bound_of(row)):.2f} of the bound")
    table.add_row("contact sheet", str(sheet))
    console.print(table)


if __name__ == "__main__":
    main()
