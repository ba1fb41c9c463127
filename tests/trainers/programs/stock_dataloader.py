"""A stock DataLoader over the bare stream, under DDP: the loop sets the epoch, the stream has the state.

Workers of a DataLoader read ahead of the loop, and the stream cannot know how far the loop is: with workers it is saved
between epochs only, and refuses in mid-epoch.
"""

import torch
import torch.distributed as dist
from common import Job, error_of, leave_group, make_model, make_stream, read_job, windows_of, write_windows
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import epistream as es


def train(job: Job, stream: es.EpisodeStream) -> list[list[list[int]]]:
    loader = DataLoader(stream, batch_size=None, num_workers=job.workers)
    model = DistributedDataParallel(make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint, step, seen = job.out / "checkpoint.pt", 0, []

    def save() -> None:
        state = {"model": model.module.state_dict(), "stream": stream.state_dict(), "step": step}
        if dist.get_rank() == 0:  # the state fits every rank
            torch.save(state, checkpoint)

    if job.resume:
        saved = torch.load(checkpoint, weights_only=True)
        model.module.load_state_dict(saved["model"])
        stream.load_state_dict(saved["stream"])
        step = saved["step"]
    for epoch in range(stream.state_dict()["epoch"], job.epochs):
        stream.set_epoch(epoch)  # a state that was loaded in mid-epoch is of this epoch, and stays
        steps_left = stream.num_batches
        for batch in loader:
            seen.append(windows_of(batch))
            optimizer.zero_grad()
            error_of(model, batch).backward()
            optimizer.step()
            step += 1
            steps_left -= 1
            if step == job.stop and steps_left:
                save()
                return seen
        stream.set_epoch(epoch + 1)
        if step == job.stop:
            save()
            return seen
    return seen


def main() -> None:
    job = read_job()
    dist.init_process_group("gloo")
    write_windows(job, dist.get_rank(), train(job, make_stream(job)))
    leave_group()


if __name__ == "__main__":
    main()
