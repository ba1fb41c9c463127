"""A validation on any number of ranks that counts every window once: the means are those of one process.

torchrun --nproc-per-node 2 examples/validate.py SHARDS OUT
python examples/validate.py SHARDS OUT

SHARDS have a split "val", as of ``epistream pack --val-fraction 0.1``.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from policy import Policy, inputs, make_stream, windows_of

import epistream as es


def main(shards: str, out: str) -> None:
    is_alone = not dist.is_torchelastic_launched()
    if not is_alone:
        dist.init_process_group("gloo")
    rank = 0 if is_alone else dist.get_rank()
    torch.manual_seed(0)
    policy = Policy(shards).eval()
    mean, windows = es.WindowMean(), []
    # Every rank gets the same number of batches, the last of them filled up with windows that are marked as repeats.
    with es.StreamingLoader(make_stream(shards, validation=True), num_workers=1) as loader, torch.no_grad():
        for batch in loader:
            still = batch["observation.state"][:, None] - batch["action"]  # the error of who stays where he is
            error = policy.errors(batch, policy(*inputs(batch)))
            mean.add(batch, error=error, error_of_standing_still=still.square().mean(dim=(1, 2)))
            windows.append([windows_of(batch), batch["is_repeat"].tolist()])
        means = mean.over_all_ranks()
        print(f"rank {rank}: {means.values} over {means.num_windows} of {loader.num_windows} windows")
    Path(out, f"rank-{rank}.json").write_text(json.dumps({**means._asdict(), "windows": windows}))
    if not is_alone:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
