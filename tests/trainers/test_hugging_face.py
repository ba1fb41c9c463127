"""The Hugging Face Trainer and Accelerate: each window once, runs resumed at the very batch, or a sentence that helps.

The runs are in `programs/hugging_face_cases.py`, a whole group of them in one start.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import epistream as es
from epistream.errors import StateError

PROGRAM = Path(__file__).resolve().parent / "programs" / "hugging_face_cases.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
INSTEAD = "give it to epistream.StreamingLoader, or train with epistream.integrations.hugging_face.StreamTrainerMixin"
ONE_BY_ONE = "OptionError: Accelerate takes 8 elements of the stream at a time, and each is a whole batch."
NOT_ROUND = "OptionError: Accelerate deals 7 batches of a stream with world=World() to 2 ranks; they do not go round"
OTHERS = "OptionError: Accelerate deals to 2 ranks what the stream gives to rank 0 of 3. Give the stream world=World.of"
STATEFUL = "OptionError: Accelerate with use_stateful_dataloader=True saves no epoch"
TWO_EPOCHS = "14 batches, 140 windows, each [2] times"

PREPARED = {
    "dispatched, 0 workers": "exact",
    "dispatched, 2 workers": "exact",
    "dispatched, elements one by one": "exact",
    "dispatched, 3 spawned workers that stay": "exact",
    "dispatched, world by hand": TWO_EPOCHS,
    "dispatched, world by hand that does not go round": NOT_ROUND,
    "dispatched, world of others": OTHERS,
    "dispatched, 8 elements": ONE_BY_ONE,
    "dispatched, stateful": STATEFUL,
    "sharded, 0 workers": "exact",
    "sharded, 2 workers": "exact",
    "sharded, elements one by one": "exact",
    "sharded, world by hand": TWO_EPOCHS,
    "sharded, world by hand that does not go round": NOT_ROUND,
    "sharded, world of others": OTHERS,
    "sharded, 8 elements": ONE_BY_ONE,
    "sharded, stateful": STATEFUL,
    "sharded, data set around": "Accelerate deals the elements of Around to ranks, which has them from a stream",
    "padded": "exact",
    "uneven": "OptionError: Accelerate lets rank 0 read for all ranks and cuts that into equal parts",
    "split_batches": "OptionError: Accelerate with split_batches=True cuts batches",
    "state of the stream in the loop": "StateError: state_dict: Accelerate reads this stream ahead of the loop",
    "state loaded for another epoch": "begins epoch 0. Call its set_epoch(1) before the loop.",
    "state loaded and epoch set": "exact",
    "StreamingLoader": "exact",
    "skip_first_batches": "exact",
    "a loop of one's own afterwards": "exact",
}
OTHER_NUMBERS = "Resume with the numbers of the run that saved it."
TRAINERS = {
    "mixin, mid-epoch": "exact",
    "mixin, end of an epoch, 2 workers": "exact",
    "mixin, 4 batches a step": "exact",
    "mixin, ignore_data_skip": "exact",
    "mixin, max_steps": "exact",
    "mixin, evaluations": "exact",
    "mixin, callbacks restored": "exact",
    "mixin, fewer batches a step": OTHER_NUMBERS,
    "mixin, other batch size": OTHER_NUMBERS,
    "mixin, other seed": "StateError: state: seed is 3, this stream has 4.",
    "mixin, left": "exact",
    "mixin, loss of repeats": "exact",
    "mixin, loss and metrics of repeats": "exact",
    "loader alone, mid-epoch": "exact",
    "loader alone, end of an epoch": "exact",
    "loader alone, 4 batches a step": "exact",
    "callback beside one's own loader": "exact",
    "dataset, first epoch": "exact",
    "dataset, end of the first epoch": "exact",
    "dataset, second epoch": f"and it would go on in a wrong one. To resume, {INSTEAD}.",
    "dataset, 8 elements": ONE_BY_ONE,
    "killed before the step is saved": "exact",
}


def outcomes(shards: Path, out: Path, group: str, ranks: int) -> dict[str, str]:
    """Run a group of the program's cases on so many ranks, and say what became of each."""
    # Sockets are made in TMPDIR, whose names may have 107 bytes.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*(TORCHRUN if ranks > 1 else [sys.executable]), str(PROGRAM), str(shards), str(out), group]
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=260, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    return json.loads((out / f"{group}-{ranks}.json").read_text())


def compare(found: dict[str, str], wanted: dict[str, str]) -> None:
    assert found.keys() == wanted.keys()
    wrong = {name: found[name] for name in wanted if found[name] != wanted[name] and wanted[name] not in found[name]}
    assert wrong == {}


@pytest.mark.timeout(300)
def test_stream_in_a_prepared_dataloader_gives_each_window_once_or_is_refused(aloha_shards, tmp_path):
    compare(outcomes(aloha_shards, tmp_path, "prepared", ranks=2), PREPARED)


TEXTS_TO_OTHER_RANKS = """
import sys

import torch.distributed as dist
from accelerate import Accelerator
from torch.utils.data import DataLoader

import epistream as es

accelerator = Accelerator(cpu=True)
loader = DataLoader(es.EpisodeStream(sys.argv[1], batch_size=10, features=["action"]), batch_size=None)
for _ in accelerator.prepare(loader):
    pass
"""


@pytest.mark.timeout(120)
def test_texts_that_rank_0_would_have_to_send_are_refused_by_name(aloha_shards, tmp_path):
    program = tmp_path / "texts.py"
    program.write_text(TEXTS_TO_OTHER_RANKS)
    job = subprocess.run([*TORCHRUN, program, aloha_shards], capture_output=True, text=True, timeout=110, check=False)
    assert job.returncode
    assert "OptionError: " in job.stderr
    assert "send them tensors, but batch['task'][0] is str. Leave it out by sample_format" in job.stderr


@pytest.mark.timeout(300)
def test_trainer_of_one_rank_resumes_at_the_very_batch_or_refuses(aloha_shards, tmp_path):
    compare(outcomes(aloha_shards, tmp_path, "trainers", ranks=1), TRAINERS)


@pytest.mark.timeout(600)
def test_trainer_of_two_ranks_resumes_at_the_very_batch_and_refuses_another_number_of_ranks(aloha_shards, tmp_path):
    compare(outcomes(aloha_shards, tmp_path, "trainers", ranks=2), TRAINERS)
    found = outcomes(aloha_shards, tmp_path, "elsewhere", ranks=1)
    wanted = (
        "StateError: checkpoint at step 3: saved after 60 windows of epoch 0, but for this run, of 1 ranks x 10 windows"
        " x 1 batches a step, that step comes after 30 windows of epoch 0. Resume with the numbers of the run that "
        "saved it."
    )
    assert found == {"mixin, other number of ranks": wanted}


def test_package_of_integrations_imports_no_trainer():
    code = "import sys, epistream.integrations; sys.exit(any(m in sys.modules for m in ('transformers', 'accelerate')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_place_of_a_checkpoint_that_is_no_state_is_refused_before_anything_is_loaded(aloha_shards):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from epistream.integrations.hugging_face import StreamCallback

    loader = es.StreamingLoader(es.EpisodeStream(aloha_shards, batch_size=10, features=["action"]), num_workers=0)
    args = TrainingArguments(output_dir="unused", report_to=[], use_cpu=True)
    before = loader.state_dict()
    other = {"place": {**before, "epoch": 5}}
    for kept in ("x", {"attributes": 3}, {"attributes": {"place": [1]}}, {"attributes": other}):
        state = TrainerState(global_step=3, stateful_callbacks={"StreamCallback": kept})
        with pytest.raises(StateError, match=r"state: |checkpoint at step 3: "):
            StreamCallback().on_train_begin(args, state, TrainerControl(), loader)
        assert loader.state_dict() == before
