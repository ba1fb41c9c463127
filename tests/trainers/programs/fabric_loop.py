"""Lightning Fabric: a loop of one's own, checkpoints by ``fabric.save``, resumed by ``fabric.load``."""

import torch
from common import Job, error_of, make_model, make_stream, read_job, windows_of, write_windows
from lightning.fabric import Fabric

import epistream as es


def train(job: Job, fabric: Fabric, loader: es.StreamingLoader) -> list[list[list[int]]]:
    model = make_model()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    state = {"model": model, "optimizer": optimizer, "loader": loader, "step": 0}
    checkpoint, seen = job.out / "checkpoint.ckpt", []
    if job.resume:
        fabric.load(checkpoint, state)
    while loader.state_dict()["epoch"] < job.epochs:
        for batch in loader:
            seen.append(windows_of(batch))
            optimizer.zero_grad()
            fabric.backward(error_of(model, batch))
            optimizer.step()
            state["step"] += 1
            if state["step"] == job.stop:
                fabric.save(checkpoint, state)
                return seen
    return seen


def main() -> None:
    job = read_job()
    fabric = Fabric(accelerator="cpu", devices=job.ranks, strategy="ddp" if job.ranks > 1 else "auto")
    fabric.launch()
    # As it is: Fabric sets up torch's own loaders only, and this one moves batches by itself.
    with es.StreamingLoader(make_stream(job), num_workers=job.workers, device=fabric.device) as loader:
        write_windows(job, fabric.global_rank, train(job, fabric, loader))


if __name__ == "__main__":
    main()
