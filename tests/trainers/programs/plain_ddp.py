"""Plain DistributedDataParallel: a loop over a StreamingLoader, checkpoints by torch.save on rank 0."""

import torch
import torch.distributed as dist
from common import Job, error_of, leave_group, make_model, make_stream, read_job, windows_of, write_windows
from torch.nn.parallel import DistributedDataParallel

import epistream as es


def train(job: Job, loader: es.StreamingLoader) -> list[list[list[int]]]:
    model = DistributedDataParallel(make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint, step, seen = job.out / "checkpoint.pt", 0, []
    if job.resume:
        saved = torch.load(checkpoint, weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        step = saved["step"]
    while loader.state_dict()["epoch"] < job.epochs:
        for batch in loader:
            seen.append(windows_of(batch))
            optimizer.zero_grad()
            error_of(model, batch).backward()
            optimizer.step()
            step += 1
            if step == job.stop:
                if dist.get_rank() == 0:  # the state fits every rank
                    parts = {"model": model.module, "optimizer": optimizer, "loader": loader}
                    states = {name: part.state_dict() for name, part in parts.items()}
                    torch.save({**states, "step": step}, checkpoint)
                return seen
    return seen


def main() -> None:
    job = read_job()
    dist.init_process_group("gloo")
    with es.StreamingLoader(make_stream(job), num_workers=job.workers) as loader:
        write_windows(job, dist.get_rank(), train(job, loader))
    leave_group()


if __name__ == "__main__":
    main()
