"""A loop with Hugging Face Accelerate: the loader is registered for the checkpoints of ``accelerator.save_state``."""

import torch
from accelerate import Accelerator
from common import Job, error_of, make_model, make_stream, read_job, windows_of, write_windows

import epistream as es


def train(job: Job, accelerator: Accelerator, loader: es.StreamingLoader) -> list[list[list[int]]]:
    model = make_model()
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
    accelerator.register_for_checkpointing(loader)
    if job.resume:
        accelerator.load_state(str(job.out / "checkpoint"))
    step, seen = 0, []
    while loader.state_dict()["epoch"] < job.epochs:
        for batch in loader:
            seen.append(windows_of(batch))
            accelerator.backward(error_of(model, batch))
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == job.stop:
                accelerator.save_state(str(job.out / "checkpoint"))
                return seen
    return seen


def main() -> None:
    job = read_job()
    accelerator = Accelerator(cpu=True)
    with es.StreamingLoader(make_stream(job), num_workers=job.workers) as loader:
        write_windows(job, accelerator.process_index, train(job, accelerator, loader))
    accelerator.free_memory()  # a gloo group that goes with the last model that uses it may wait for ever
    accelerator.end_training()


if __name__ == "__main__":
    main()
