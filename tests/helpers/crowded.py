"""Two processes of one control group: a stream that keeps decoded frames, and one that takes memory when it is told.

    python crowded.py stream GROUP DATASET DIRECTORY
    python crowded.py take GROUP

Both talk in lines of JSON. The stream prints "base", waits for a line, and then reads a batch for each line and tells
of it, until the line is "end". The other takes as many MiB as each line says, and says so.
"""

import json
import sys
import zlib
from pathlib import Path

MIB = 1 << 20


def say(**values) -> None:
    print(json.dumps(values), flush=True)


def stream(source: str, directory: str) -> None:
    import epistream as es

    options = {
        "batch_size": 8,
        "features": ["observation.images.top", "action"],
        "image_size": (240, 320),
        "shuffle": False,
    }

    def checksum(batch) -> int:
        return zlib.crc32(batch["action"].numpy(), zlib.crc32(batch["observation.images.top"].numpy()))

    wanted = [checksum(batch) for batch in es.EpisodeStream(source, decode="per_read", **options)]
    say(base=True)
    sys.stdin.readline()
    kept = es.EpisodeStream(source, decode="once", cache=es.CacheOptions(directory=directory), **options)
    cache = kept.job.cache
    for epoch in range(1000):
        for number, batch in enumerate(kept):
            if sys.stdin.readline().strip() == "end":
                cache.close()
                return
            is_right = checksum(batch) == wanted[number]
            del batch
            budget = cache.budget()
            held = sum(file.stat().st_size for file in Path(directory).glob("*.shard"))
            stats = cache.stats()
            say(
                epoch=epoch,
                is_right=is_right,
                held=held,
                budget=budget.bytes if budget else 0,
                given=stats.bytes_given_back,
                paused=stats.made_paused,
                fills=stats.made_fills,
            )


def take() -> None:
    taken = []
    say(taken=0)
    for line in sys.stdin:
        taken.append(bytearray(b"x") * (int(line) * MIB))
        say(taken=sum(map(len, taken)))


if __name__ == "__main__":
    if sys.argv[2]:
        (Path(sys.argv[2]) / "cgroup.procs").write_text("0")
    if sys.argv[1] == "stream":
        stream(*sys.argv[3:])
    else:
        take()
