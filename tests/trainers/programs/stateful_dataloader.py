"""torchdata's StatefulDataLoader over a stream, in a loop that sets the epoch; each rank saves the loader's state."""

import torch
import torch.distributed as dist
from common import Job, error_of, leave_group, make_model, make_stream, read_job, windows_of, write_windows
from torch.nn.parallel import DistributedDataParallel
from torchdata.stateful_dataloader import StatefulDataLoader


def train(job: Job) -> list[list[list[int]]]:
    stream = make_stream(job)
    loader = StatefulDataLoader(stream, batch_size=None, num_workers=job.workers)
    model = DistributedDataParallel(make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = {"model": model.module, "optimizer": optimizer, "loader": loader}
    # Each rank its own: the state is of the workers of this rank.
    checkpoint, step, first_epoch, seen = job.out / f"checkpoint-{dist.get_rank()}.pt", 0, 0, []
    if job.resume:
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        step, first_epoch = saved["step"], saved["epoch"]
    for epoch in range(first_epoch, job.epochs):
        stream.set_epoch(epoch)
        for batch in loader:
            seen.append(windows_of(batch))
            optimizer.zero_grad()
            error_of(model, batch).backward()
            optimizer.step()
            step += 1
            if step == job.stop:
                states = {name: part.state_dict() for name, part in parts.items()}
                torch.save({**states, "step": step, "epoch": epoch}, checkpoint)
                return seen
    return seen


def main() -> None:
    job = read_job()
    dist.init_process_group("gloo")
    write_windows(job, dist.get_rank(), train(job))
    leave_group()


if __name__ == "__main__":
    main()
