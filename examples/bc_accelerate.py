"""Behaviour cloning with Hugging Face Accelerate.

    accelerate launch --multi_gpu --num_processes 2 examples/bc_accelerate.py SHARDS OUT

(``--multi_gpu`` starts one process a rank, also where there are only CPUs; ``--cpu`` starts a single one without MPI.)

The stream finds its rank by itself, so every rank reads its own windows; ``accelerator.prepare`` would give the loader
back as it is. Registered, it is part of what ``save_state`` saves: started again, the script goes on from the last
checkpoint, which may lie in the middle of an epoch as well.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from policy import Policy, inputs, make_stream, windows_of

import epistream as es


def main(shards: str, out: str, num_epochs: int = 5) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    policy = Policy(shards)
    model, optimizer = accelerator.prepare(policy, torch.optim.Adam(policy.parameters(), lr=3e-3))
    losses, windows = [], []
    with es.StreamingLoader(make_stream(shards), num_workers=1) as loader:
        accelerator.register_for_checkpointing(loader)
        saved = sorted(Path(out).glob("checkpoint-*"))
        if saved:
            accelerator.load_state(str(saved[-1]))
        while (epoch := loader.state_dict()["epoch"]) < num_epochs:
            for batch in loader:
                loss = policy.error(batch, model(*inputs(batch)))
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                losses.append(loss.item())
                windows.append(windows_of(batch))
            save(accelerator, Path(out, f"checkpoint-{epoch + 1:04}"))
    report = {"losses": losses, "windows": windows}
    Path(out, f"rank-{accelerator.process_index}.json").write_text(json.dumps(report))
    # On CPUs a process group that goes with the last model that uses it may wait for ever (pytorch issue 190489).
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()


def save(accelerator: Accelerator, checkpoint: Path) -> None:
    """Write a checkpoint under a name of its own first: whoever is killed meanwhile leaves none that looks whole."""
    draft = checkpoint.with_name("unfinished")
    accelerator.save_state(str(draft))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        draft.replace(checkpoint)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
