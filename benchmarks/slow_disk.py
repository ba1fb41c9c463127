"""First epochs from slow local disks, cold page cache, beside reading the same shards in sequence. Needs root on Linux.

    python benchmarks/slow_disk.py [--before REV] [--data FOLDER] [--disks hdd,iops] [--cases raw-all] [--rounds 3]

Real ALOHA frames are packed into shards of 8 MiB on an ext4 image, which lies on a slow block device made here
(`slow_device.py`). Each measurement drops the page cache and starts a process; "in sequence" reads all tars and indexes
one after the other, 1 MiB at a time. Windows/s count from `iter(loader)` to the end of the epoch; those of REV (a
commit, or a folder, measured beside) to --seconds. `cached` is measured again with everything in the page cache.
`ratio` is windows/s by the lesser of these two; where all shards are drawn from at once, by one after the other, since
nothing can be used there before nearly all was read. `reads` are requests of the device.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from slow_device import Model, drop_caches, make_image, slow_disk

ROOT = Path(__file__).resolve().parent.parent
DISKS = {
    "free": Model(),
    "iops": Model(reads_per_s=1000),
    "bandwidth": Model(bytes_per_s=100e6),
    "latency": Model(latency_s=0.008),
    "cloud": Model(reads_per_s=1000, bytes_per_s=100e6, latency_s=0.008),
    "hdd": Model(bytes_per_s=100e6, seek_s=0.008),
    "hdd-iops": Model(reads_per_s=1000, bytes_per_s=100e6, seek_s=0.008),
}
# Raw frames cost nothing but bytes; JPEG frames are decoded too. "few": shards drawn from at a time, of about 100.
CASES = {
    "raw-few": ("raw", {"lanes": 4, "resident_shards": 12}),
    "raw-all": ("raw", {}),
    "jpeg-few": ("jpeg", {"lanes": 4, "resident_shards": 12}),
    "jpeg-all": ("jpeg", {}),
}


def program(folder: str, order: str, seconds: float, epochs: int) -> None:
    """What a user's program does."""
    import epistream as es

    cache = es.CacheOptions(directory=f"/dev/shm/epistream-slow-{os.getpid()}")
    window = es.Window(action=range(100))
    stream = es.EpisodeStream(
        folder, batch_size=32, window=window, decode="per_read", order=es.OrderOptions(**json.loads(order)), cache=cache
    )
    figures = []
    with es.StreamingLoader(stream, num_workers=2) as loader:
        for _ in range(epochs):
            first_s, count, cpu_s, began = 0.0, 0, sum(os.times()[:2]), time.monotonic()
            for batch in loader:
                count += 32
                del batch
                first_s = first_s or time.monotonic() - began
                if time.monotonic() - began > seconds:
                    break
            figures.append((count / (time.monotonic() - began), first_s, sum(os.times()[:2]) - cpu_s))
        report = str(loader.report())
    print(json.dumps({"epochs": figures, "report": report}))


def measure(site: Path | None, folder: Path, order: dict[str, int], seconds: float, epochs: int) -> dict:
    """The figures of one program, with the code of a site."""
    environment = dict(os.environ)
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    command = [sys.executable, __file__, "--program", folder, json.dumps(order), str(seconds), str(epochs)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    sys.stderr.write(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def in_sequence(folder: Path) -> float:
    """Seconds to read all shards and indexes one after the other."""
    began = time.monotonic()
    for file in sorted(folder.glob("shard-*")):
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 20):
                pass
    return time.monotonic() - began


def prepared(data: Path, source: Path, codec: str) -> tuple[Path, int]:
    """The image with a dataset of a codec, and its windows."""
    from peers.data import Scenario
    from peers.writers import prepare

    size, steps = ((480, 640), 8000) if codec == "jpeg" else ((96, 96), 16000)
    scenario = Scenario(f"slow-{codec}", size, codec, steps, shard_bytes=8 << 20)
    folder = prepare("epistream", scenario, source, data) / "epistream"
    image = data / f"{codec}.img"
    if not image.exists():
        make_image(image, folder)
    import epistream as es

    return image, es.open_dataset(folder).num_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="a commit or a folder whose code is measured too")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir(), "epistream-slow-disk"))
    parser.add_argument("--source", type=Path, default=ROOT / "examples" / "data" / "aloha")
    parser.add_argument("--disks", default=",".join(DISKS))
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="most for an epoch of REV; here 8 times that")
    parser.add_argument("--reports", action="store_true", help="print what each loader reports")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("slow_disk.py: makes block devices and drops the page cache, which needs root. Run: sudo ...")
    with tempfile.TemporaryDirectory() as folder:
        sites: dict[str, Path | None] = {"now": None}
        if args.before:
            from before_after import stage

            sites = {"before": Path(folder, "before"), "now": Path(folder, "now")}
            stage(args.before, Path(folder, "before"))
            stage(str(ROOT), Path(folder, "now"))
        names = "".join(f" {name:>9s} {'ratio':>6s} {'first s':>8s} {'reads':>7s}" for name in sites)
        print(
            f"{'case':10s} {'disk':10s} {'sequence':>9s} {'cached':>9s}{names}    (windows/s, medians of {args.rounds})"
        )
        for case in args.cases.split(","):
            codec, order = CASES[case]
            image, windows = prepared(args.data, args.source, codec)
            for disk in args.disks.split(","):
                with slow_disk(image, DISKS[disk]) as (mounted, file):
                    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ("", "cached", *sites)}
                    for _ in range(args.rounds):
                        drop_caches()
                        found[""].append((windows / in_sequence(mounted), 0, 0))
                        for name, site in sites.items():
                            drop_caches()
                            before = file.head.num_reads
                            most_s = args.seconds * (1 if name == "before" else 8)
                            told = measure(site, mounted, order, most_s, args.epochs)
                            figures = told["epochs"][0]
                            found[name].append((figures[0], figures[1], file.head.num_reads - before))
                            if name == "now":  # everything is in the page cache then
                                told_again = measure(site, mounted, order, args.seconds, 1)
                                found["cached"].append((told_again["epochs"][0][0], 0, 0))
                            if args.reports:
                                print(told["report"], told["epochs"])
                medians = {name: [statistics.median(x) for x in zip(*f, strict=True)] for name, f in found.items()}
                sequence, cached = medians.pop("")[0], medians.pop("cached")[0]
                # Where all shards are drawn from at once, nothing can be used before nearly all was read.
                bound = min(sequence, cached) if case.endswith("few") else 1 / (1 / sequence + 1 / cached)
                row = "".join(
                    f" {rate:9,.0f} {rate / bound:6.2f} {first:8.2f} {reads:7,.0f}"
                    for rate, first, reads in medians.values()
                )
                print(f"{case:10s} {disk:10s} {sequence:9,.0f} {cached:9,.0f}{row}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--program"]:
        program(sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
