"""One rank of a distributed run: streams epochs and writes down what it got.

    torchrun --nproc-per-node 2 examples/train_ddp.py SHARDS OUT [--epochs 2] [--batch-size 8] [--num-workers 2]

A real training script differs in the marked line only.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import epistream as es


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards")
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--cache", default="shm")
    parser.add_argument("--cache-directory", default=None)
    args = parser.parse_args()
    # torchrun ends the other ranks with SIGTERM when one dies; leaving by an exception leaves no memory behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    stream = es.EpisodeStream(
        args.shards,
        batch_size=args.batch_size,
        window=es.Window(obs=range(-1, 1), action=range(args.chunk)),
        cache=es.CacheOptions(mode=args.cache, directory=args.cache_directory),
        seed=0,
    )
    epochs = []
    with es.StreamingLoader(stream, num_workers=args.num_workers) as loader:
        for epoch in range(args.epochs):
            seen, checksum = [], torch.zeros(1)
            for batch in loader:
                checksum += batch["action"].mean()  # <- a real script trains here
                seen += zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True)
            # Ranks that got different numbers of batches would hang in a training loop; here they would be seen.
            dist.all_reduce(checksum)
            epochs.append({"epoch": epoch, "windows": seen, "checksum": checksum.item()})
        report = {"rank": rank, "num_windows": stream.num_windows, "epochs": epochs, "stats": loader.stats().to_json()}
    (args.out / f"rank-{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
