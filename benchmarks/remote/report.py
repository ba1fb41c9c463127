"""REMOTE.md from the figures of `run.py`."""

import statistics
import textwrap
from pathlib import Path
from typing import Any

from remote.readers import BATCH_SIZE, NUM_WORKERS, READERS, SCENARIO

_HEAD = """# Several ranks of one node, the same remote bytes

Written by `make bench-remote`. Machine: {cpu}, {memory_gib} GiB, Linux {kernel}, Python {python}, {date}.
{versions}.

**What runs.** {num_windows:,} windows (two 480x640 cameras as JPEG 95 4:2:0, state, 100 actions) of real episodes, in
each loader's own format, in files of about {file_mib} MiB. Loaders of fixed samples have each window stored ready-made.
One server on loopback serves them all, plain HTTP and path-style S3 reads by the same handler
([server.py](remote/server.py); "fetched" is its count of bytes of file contents), at {rate:g} MB/s over all connections
and {latency:g} ms before each answer. epistream and WebDataset read `http://`, MosaicML Streaming (`S3_ENDPOINT_URL`)
and LitData (`endpoint_url`) read `s3://` by their own clients. A job is 4 ranks x {num_workers} workers with batches of
{batch_size}, a gloo process group and torchrun's variables; its ranks share one cache folder, as each loader's
documentation has it for one node. All decode with simplejpeg. How each is opened: [readers.py](remote/readers.py).

Two things were done for peers because the server has no TLS. LitData's first S3 client refuses such servers unless a
private setting allows it. MosaicML Streaming fetches its index before the DataLoader forks, and the forked workers go
on with the same open connection; over TLS that fails and they connect anew, without it they read each other's answers
(of three cold starts two failed on torn samples, one took a minute), so they are made to connect anew here too.

## Bytes

| | fetched, epoch 1 | fetched, epoch 2 | requests | distinct windows | windows of a rank |
| --- | ---: | ---: | ---: | ---: | ---: |
{bytes}

"Fetched" is a share of the bytes of the loader's own files: 1.00 is each byte once for the whole node. Distinct windows
are those of epoch 1 over all ranks, of {num_windows:,}. Ranks with unequal numbers of windows make a data-parallel job
hang at the end of an epoch, unless the training code sees to it.
{bytes_notes}
## Memory and first batch

| | peak memory MiB | above torch alone | of it shared | disk MiB | first batch s |
| --- | ---: | ---: | ---: | ---: | ---: |
{memory}

Memory is the peak over both epochs of the private and file pages of all processes (PSS) and of all shared memory
(tmpfs files, memfds, anonymous). "torch alone" is four ranks with torch and a process group that read nothing. Files
on disk, where the peers keep their copies, are page cache and not in it; epistream keeps its copy in shared memory,
which is. First batch: from opening the dataset with nothing cached until the *last* of the four ranks has one;
imports are not counted; median and spread of {rounds} cold starts.

## SIGKILL in mid-download

A rank is killed when {kill_at:.0%} of the dataset has been fetched over a link of {kill_rate:g} MB/s: with all that it
started (as when its container goes), or its main process alone (as the out-of-memory killer does). The others need
nothing from it, so they could finish their epoch; after {others_s} s without an end they count as waiting for ever.
Then all that is left of the job is killed, and the same job starts again on the same folders.

| | killed | other ranks | orphans | torn files | left behind | restart | fetched again | missing |
| --- | --- | --- | ---: | ---: | --- | --- | ---: | ---: |
{kill}

Orphans are processes of the killed rank that still ran when the others were done (or were given up). Torn files lie
under the name of a whole one. "Left behind" is what still lies there after the *restarted* job has ended in good order
and is no whole copy of a served file: half-fetched files, small files (locks and notes), names in /dev/shm. "Fetched
again" is what the restart fetched, as a share of the dataset. Missing are windows that the restart gave to nobody.
With `keep=True` epistream's cache is meant to outlive the job, so its shards and the locks that belong to them stay.
"""


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _bytes_table(readers: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in readers.items():
        epochs = found["epochs"].get("epochs", [])
        if name == "nothing" or not epochs:
            continue
        first, second = epochs[0], epochs[1] if len(epochs) > 1 else None
        ranks = first["ranks"]
        spread = f"{min(ranks):,}" if min(ranks) == max(ranks) else f"{min(ranks):,} to {max(ranks):,}"
        again = f"{second['fetched_share']:.2f}" if second else "no end"
        lines.append(
            _row(
                [
                    READERS[name].title,
                    f"{first['fetched_share']:.2f}",
                    again,
                    f"{first['requests']:,}",
                    f"{first['distinct']:,}",
                    spread,
                ]
            )
        )
    return lines


def _notes(readers: dict[str, Any]) -> list[str]:
    """Starts that failed, and what epistream's own counters say of its bytes."""
    lines = []
    for name, found in readers.items():
        one = found["epochs"]
        for error in one.get("errors", []):
            lines.append("\n" + textwrap.fill(f"{READERS[name].title}, a start that failed: {error}.", 118))
    own = readers.get("epistream", {}).get("epochs", {}).get("epochs", [{}])[0].get("own_counts", {})
    if own.get("fill_bytes"):
        text = (
            f"By its counters, {own['fill_bytes']:.2f} of epistream's epoch 1 are fills, each shard once for the "
            f"node, and {own['range_bytes']:.2f} ranges: what a worker's first batches need is read in blocks of 1 MiB "
            "while shards come. This part is of a fixed size for each worker and does not grow with the "
            "dataset. `epistream, default` also keeps the decoded frames of all episodes in shared memory, because "
            "there is room for them."
        )
        lines.append("\n" + textwrap.fill(text, 118))
    return lines


def _memory_table(readers: dict[str, Any]) -> list[str]:
    floor = readers.get("nothing", {}).get("epochs", {}).get("peak_mib", 0.0)
    lines = []
    for name, found in readers.items():
        one = found["epochs"]
        if "peak_mib" not in one:
            continue
        firsts = one.get("first_batches_s", [])
        lines.append(
            _row(
                [
                    READERS[name].title,
                    f"{one['peak_mib']:,.0f}",
                    "" if name == "nothing" else f"{one['peak_mib'] - floor:,.0f}",
                    f"{one['peak_shared_mib']:,.0f}",
                    f"{one['disk_mib']:,.0f}",
                    f"{statistics.median(firsts):.2f} ({min(firsts):.2f}-{max(firsts):.2f})" if firsts else "",
                ]
            )
        )
    return lines


def _kill_table(readers: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in readers.items():
        for whom, one in found.get("kill", {}).items():
            if "error" in one:
                lines.append(_row([READERS[name].title, whom, one["error"]] + [""] * 6))
                continue
            restart = one["restart"]
            complete = "missing" in restart
            lines.append(
                _row(
                    [
                        READERS[name].title,
                        "rank" if whom == "rank" else "main process",
                        _others(one["others"]),
                        str(one["orphans"]),
                        "not told" if one["left"]["torn"] is None else str(len(one["left"]["torn"])),
                        _left(one["left_after_restart"]),
                        f"{restart['seconds']:.0f} s" if complete else f"**{restart['finished']} of 4 ranks finish**",
                        f"{restart['fetched_share']:.2f}",
                        _missing(name, restart) if complete else "",
                    ]
                )
            )
    return lines


def _missing(name: str, restart: dict[str, Any]) -> str:
    return f"{restart['missing']:,}" if READERS[name].is_exact else "(by chance)"


def _others(others: dict[str, Any]) -> str:
    parts = [
        f"{others[key]} {text}"
        for key, text in (("finished", "finish"), ("failed", "fail"), ("still_waiting", "wait for ever"))
        if others[key]
    ]
    return ", ".join(parts)


def _left(left: dict[str, Any]) -> str:
    parts = [
        f"{len(left[key])} {text}"
        for key, text in (
            ("torn", "torn"),
            ("partial", "half-fetched"),
            ("other", "small files"),
            ("shm_names", "shm names"),
        )
        if left[key]
    ]
    return ", ".join(parts) or "nothing"


def write_report(report: dict[str, Any], path: Path) -> None:
    """The page, of the readers that have figures."""
    readers = {name: report["readers"][name] for name in READERS if "epochs" in report["readers"].get(name, {})}
    machine, links = report["machine"], report["links"]
    notes = _notes(readers)
    rounds = max((len(found["epochs"].get("first_batches_s", [])) for found in readers.values()), default=0)
    text = _HEAD.format(
        **{key: machine[key] for key in ("cpu", "memory_gib", "kernel", "python", "date")},
        versions=textwrap.fill(", ".join(f"{name} {version}" for name, version in machine["versions"].items()), 118),
        num_windows=SCENARIO.num_steps,
        file_mib=SCENARIO.file_bytes >> 20,
        rate=links["epochs"][0] / 1e6,
        latency=links["epochs"][1] * 1e3,
        kill_rate=links["kill"][0] / 1e6,
        kill_at=report["kill_at"],
        others_s=report["others_s"],
        num_workers=NUM_WORKERS,
        batch_size=BATCH_SIZE,
        rounds=rounds,
        bytes="\n".join(_bytes_table(readers)),
        bytes_notes="\n".join([*notes, ""]),
        memory="\n".join(_memory_table(readers)),
        kill="\n".join(_kill_table(readers)),
    )
    path.write_text(text)
