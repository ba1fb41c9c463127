"""Many short runs under Accelerate and the Trainer in one start of a rank, as starts take longest.

    python hugging_face_cases.py SHARDS OUT GROUP

Rank 0 writes ``OUT/GROUP-RANKS.json``: for each run what became of it, "exact" if every rank got the windows that a
stream of its own gives in the same order, else what differs, or the error.
"""

import faulthandler
import json
import shutil
import sys
from collections import Counter
from contextlib import suppress
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator, PartialState, skip_first_batches
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import epistream as es
from epistream.integrations.hugging_face import StreamCallback, StreamTrainerMixin

KEYS = ("action", "episode_index", "step_index")  # Accelerate can send tensors only
NUM_EPOCHS = 3


def only_tensors(batch):
    return {key: batch[key] for key in KEYS}


def first_of(batches):
    return batches[0]


def windows_of(batch):
    return list(zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True))


class Cases:
    """What became of each run so far."""

    def __init__(self, shards: str, out: Path) -> None:
        self.shards, self.out, self.outcomes = shards, out, {}
        self.rank, self.ranks = PartialState().process_index, PartialState().num_processes
        self.wanted = []
        stream = self.stream(world=es.World.of(self.rank, self.ranks))
        for epoch in range(NUM_EPOCHS):
            stream.set_epoch(epoch)
            self.wanted.append([windows_of(batch) for batch in stream])
        self.an_epoch = len(self.wanted[0])

    def stream(self, **options):
        given = {"batch_size": 10, "features": ["action"], "seed": 3, "sample_format": only_tensors}
        return es.EpisodeStream(self.shards, **{**given, **options})

    def wait(self) -> None:
        if self.ranks > 1:
            dist.barrier()

    def everywhere(self, found: object) -> list:
        all_found = [found]
        if self.ranks > 1:
            all_found = [None] * self.ranks
            dist.all_gather_object(all_found, found)
        return all_found

    def note(self, name: str, run, wanted=None) -> None:
        """Run it and compare; where it gives epochs of another order, whether each has each window once."""
        AcceleratorState._reset_state()
        GradientState._reset_state()
        try:
            found = run()
            wanted = list(chain(*self.wanted[:2])) if wanted is None else wanted
            outcome = "exact" if found == wanted else self.counted(found)
        except Exception as error:  # it is what is to be noted
            outcome = f"{type(error).__name__}: {error}"
        outcomes = self.everywhere(outcome)
        self.outcomes[name] = outcome if set(outcomes) == {outcome} else "; ".join(outcomes)
        print(f"{name}: {self.outcomes[name]}", flush=True)

    def counted(self, found: list) -> str:
        windows = Counter(chain(*chain(*self.everywhere(found))))
        return f"{len(found)} batches, {len(windows)} windows, each {sorted(set(windows.values()))} times"


# --- DataLoaders that Accelerate prepares


class Around(IterableDataset):
    """A data set of the user's that has its elements from a stream."""

    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        yield from self.stream


def prepared(cases: Cases) -> None:
    def two_epochs(stream=None, config=None, **loader):
        def run():
            accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**(config or {})))
            batches = accelerator.prepare(DataLoader(stream or cases.stream(), **{"batch_size": None, **loader}))
            return [windows_of(batch) for _ in range(2) for batch in batches]

        return run

    single = {"batch_size": 1, "collate_fn": first_of}
    here = {"dispatch_batches": False}
    for workers in (0, 2):
        cases.note(f"dispatched, {workers} workers", two_epochs(num_workers=workers))
        cases.note(f"sharded, {workers} workers", two_epochs(config=here, num_workers=workers))
    cases.note("dispatched, elements one by one", two_epochs(**single))
    cases.note("sharded, elements one by one", two_epochs(config=here, **single))
    stays = {"num_workers": 3, "multiprocessing_context": "spawn", "persistent_workers": True}
    cases.note("dispatched, 3 spawned workers that stay", two_epochs(**single, **stays))
    cases.note("padded", two_epochs(cases.stream(remainder="pad")))
    cases.note("uneven", two_epochs(cases.stream(remainder="uneven")))
    cases.note("split_batches", two_epochs(config={"split_batches": True}, **single))
    for name, config in {"dispatched": {}, "sharded": here}.items():
        cases.note(f"{name}, 8 elements", two_epochs(config=config, batch_size=8, collate_fn=first_of))
        cases.note(f"{name}, world by hand", two_epochs(cases.stream(world=es.World()), config, **single))
        alone = cases.stream(world=es.World(), batch_size=20)  # 7 batches
        cases.note(f"{name}, world by hand that does not go round", two_epochs(alone, config, **single))
        cases.note(f"{name}, world of others", two_epochs(cases.stream(world=es.World.of(0, 3)), config, **single))
        stateful = {**config, "use_stateful_dataloader": True}
        cases.note(f"{name}, stateful", two_epochs(config=stateful))
    # Dispatched it is refused as well, but on rank 0 alone: the job ends, which this one must not.
    cases.note("sharded, data set around", two_epochs(Around(cases.stream()), here, **single))
    cases.note("state of the stream in the loop", lambda: state_in_loop(cases))
    cases.note("state loaded for another epoch", lambda: loaded(cases, set_epoch=False))
    cases.note("state loaded and epoch set", lambda: loaded(cases, set_epoch=True), cases.wanted[1][2:])
    cases.note("StreamingLoader", lambda: loader_epochs(cases))
    cases.note("skip_first_batches", lambda: skipped(cases), cases.wanted[1][3:] + cases.wanted[2])
    cases.note("a loop of one's own afterwards", lambda: afterwards(cases), cases.wanted[0] + cases.wanted[1])


def state_in_loop(cases):
    stream = cases.stream()
    batches = iter(Accelerator(cpu=True).prepare(DataLoader(stream, batch_size=None)))
    next(batches)
    stream.state_dict()


def loaded(cases, set_epoch):
    config = DataLoaderConfiguration(dispatch_batches=False)
    stream = cases.stream()
    batches = Accelerator(cpu=True, dataloader_config=config).prepare(DataLoader(stream, batch_size=None))
    stream.set_epoch(1, 2 * 10 * cases.ranks)
    stream.load_state_dict(stream.state_dict())
    if set_epoch:
        batches.set_epoch(1)
    return [windows_of(batch) for batch in batches]


def loader_epochs(cases):
    with es.StreamingLoader(cases.stream(), num_workers=1) as loader:
        prepared_loader = Accelerator(cpu=True).prepare(loader)
        return [windows_of(batch) for _ in range(2) for batch in prepared_loader]


def skipped(cases):
    Accelerator(cpu=True)
    with es.StreamingLoader(cases.stream(), num_workers=1) as loader:
        loader.set_epoch(1)
        rest = [windows_of(batch) for batch in skip_first_batches(loader, 3)]
        return rest + [windows_of(batch) for batch in loader]


def afterwards(cases):
    stream = cases.stream()
    batches = Accelerator(cpu=True).prepare(DataLoader(stream, batch_size=None, num_workers=1))
    found = [windows_of(batch) for batch in batches]
    stream.set_epoch(1)
    return found + [windows_of(batch) for batch in stream]


# --- The Trainer


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, **batch):
        if self.training:
            self.seen.append(windows_of(batch))
        error = (batch["action"] - self.weight) ** 2
        return {"loss": error.mean(), "error": error}


class BreakOff(TrainerCallback):
    """Saves a checkpoint after some steps and ends the run."""

    def __init__(self, stop):
        self.stop = stop

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.stop:
            control.should_save = control.should_training_stop = True


class Mixed(StreamTrainerMixin, Trainer):
    pass


class Own(Trainer):
    """A Trainer without anything of ours but the loader."""

    def get_train_dataloader(self):
        return es.StreamingLoader(self.stream, num_workers=self.args.dataloader_num_workers)


class Killed(BaseException):
    """Stands for the end of the process."""


class KilledBefore(Mixed):
    """Dies in every checkpoint but the first, before the part that has the step."""

    def _save_rng_state(self, output_dir):
        if self.state.global_step > 2:
            raise Killed
        super()._save_rng_state(output_dir)


def train(cases, kind, stop=None, resume=False, stream=None, callbacks=(), **arguments):
    stream = cases.stream() if stream is None else stream
    given = {
        **{"num_train_epochs": NUM_EPOCHS, "save_strategy": "no", "per_device_train_batch_size": 1},
        **{"use_cpu": True, "report_to": [], "disable_tqdm": True, "remove_unused_columns": False},
        **{"ddp_find_unused_parameters": False, "label_names": ["action"]},
    }
    options = {"callbacks": [BreakOff(stop), *callbacks]}
    if kind is Trainer:
        options |= {"train_dataset": stream, "data_collator": first_of}
    elif kind is not Own:
        options |= {"train_dataset": stream}
    if "eval_strategy" in arguments:
        options |= {"eval_dataset": cases.stream(shuffle=False)}
    model = Model()
    trainer = kind(model, TrainingArguments(str(cases.out / "checkpoints"), **{**given, **arguments}), **options)
    trainer.stream = stream
    trainer.train(resume_from_checkpoint=resume)
    return model.seen


def cleared(cases):
    cases.wait()
    if cases.rank == 0:
        shutil.rmtree(cases.out / "checkpoints", ignore_errors=True)
    cases.wait()


def in_two(cases, kind, stop, resumed=None, wanted_epochs=NUM_EPOCHS, **arguments):
    """Two runs, the second from the checkpoint of the first."""

    def run():
        cleared(cases)
        first = train(cases, kind, stop, **arguments)
        cases.wait()
        return first + train(cases, kind, resume=True, **{**arguments, **(resumed or {})})

    return run, list(chain(*cases.wanted[:wanted_epochs]))


def trainers(cases: Cases) -> None:
    epoch = cases.an_epoch
    uneven_steps = -(-epoch // 4) + 1  # the second step of epoch 1, four batches each
    cases.note("mixin, mid-epoch", *in_two(cases, Mixed, epoch + 5))
    cases.note("mixin, end of an epoch, 2 workers", *in_two(cases, Mixed, epoch, dataloader_num_workers=2))
    cases.note("loader alone, mid-epoch", *in_two(cases, Own, 2 * epoch + 3))
    cases.note("loader alone, end of an epoch", *in_two(cases, Own, epoch, dataloader_num_workers=1))
    cases.note("mixin, 4 batches a step", *in_two(cases, Mixed, uneven_steps, gradient_accumulation_steps=4))
    cases.note("loader alone, 4 batches a step", *in_two(cases, Own, uneven_steps, gradient_accumulation_steps=4))
    cases.note("callback beside one's own loader", *in_two(cases, Own, epoch + 2, callbacks=[StreamCallback()]))
    cases.note("mixin, ignore_data_skip", *in_two(cases, Mixed, epoch + 2, ignore_data_skip=True))
    cases.note("mixin, max_steps", *in_two(cases, Mixed, epoch + 2, max_steps=NUM_EPOCHS * epoch))
    best = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    cases.note("mixin, evaluations", *in_two(cases, Mixed, epoch + 2, load_best_model_at_end=True, **best))
    cases.note("mixin, callbacks restored", *in_two(cases, Mixed, 3, restore_callback_states_from_checkpoint=True))
    cases.note("mixin, fewer batches a step", *in_two(cases, Mixed, 2, {"gradient_accumulation_steps": 2}))
    cases.note("mixin, other batch size", *in_two(cases, Mixed, 3, {"stream": cases.stream(batch_size=5)}))
    cases.note("mixin, other seed", *in_two(cases, Mixed, 3, {"stream": cases.stream(seed=4)}))
    cases.note("mixin, loss of repeats", *evaluated(cases, prediction_loss_only=True))
    cases.note("mixin, loss and metrics of repeats", *evaluated(cases))
    steps = {"max_steps": 2 * epoch, "wanted_epochs": 2}
    cases.note("dataset, first epoch", *in_two(cases, Trainer, 3, **steps))
    cases.note("dataset, end of the first epoch", *in_two(cases, Trainer, epoch, **steps))
    cases.note("dataset, second epoch", *in_two(cases, Trainer, epoch + 2, **steps))
    many = {"per_device_train_batch_size": 8}
    cases.note("dataset, 8 elements", lambda: train(cases, Trainer, max_steps=2, **many))
    cases.note("killed before the step is saved", *killed(cases))
    # Left for another number of ranks to resume from.
    cases.note("mixin, left", lambda: cleared(cases) or train(cases, Mixed, 3), cases.wanted[0][:3])


def evaluated(cases, **arguments):
    """The loss of an evaluation whose last batches have repeats, and predictions that say which these are."""

    def marked(batch):
        return {**only_tensors(batch), **({"is_repeat": batch["is_repeat"]} if "is_repeat" in batch else {})}

    def run():
        stream = cases.stream(validation=True, split=None, batch_size=37, sample_format=marked)
        given = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "label_names": ["action", "is_repeat"]}
        counted = []

        def compute_metrics(predicted):
            action, is_repeat = predicted.label_ids
            counted.append(int((~is_repeat).sum()))
            return {"squares": float((action[~is_repeat] ** 2).mean())}

        options = {} if arguments.get("prediction_loss_only") else {"compute_metrics": compute_metrics}
        settings = TrainingArguments(str(cases.out / "checkpoints"), **given, **arguments)
        found = Mixed(Model(), settings, eval_dataset=stream, **options).evaluate()
        actions = torch.cat([b["action"] for b in cases.stream(world=es.World(), shuffle=False, batch_size=1)])
        wanted = pytest.approx(float((actions.double() ** 2).mean()), rel=1e-6)
        assert found["eval_loss"] == wanted, found
        if options:
            assert counted == [len(actions)], counted
            assert found["eval_squares"] == wanted, found
        return [[]]

    return run, [[]]


def killed(cases):
    def run():
        cleared(cases)
        steps = {"save_strategy": "steps", "save_steps": 2}
        with suppress(Killed):
            train(cases, KilledBefore, **steps)
        cases.wait()  # one rank may die before the other has made the folder
        torn = cases.out / "checkpoints" / "checkpoint-4"
        assert torn.exists()
        try:
            train(cases, Mixed, resume=True, **steps)
        except FileNotFoundError:  # loudly, for want of trainer_state.json
            pass
        else:
            raise AssertionError("resumed from half a checkpoint")
        cases.wait()
        return train(cases, Mixed, resume=str(torn.with_name("checkpoint-2")), **steps)

    return run, list(chain(*cases.wanted))[2:]


def elsewhere(cases: Cases) -> None:
    """Resume what another number of ranks has left in the folder."""
    cases.note("mixin, other number of ranks", lambda: train(cases, Mixed, resume=True))


def main(shards: str, out: str, group: str) -> None:
    faulthandler.dump_traceback_later(220, exit=True)
    transformers.logging.set_verbosity_error()
    PartialState(cpu=True)
    cases = Cases(shards, Path(out))
    {"prepared": prepared, "trainers": trainers, "elsewhere": elsewhere}[group](cases)
    if cases.rank == 0:
        Path(out, f"{group}-{cases.ranks}.json").write_text(json.dumps(cases.outcomes))
    if cases.ranks > 1:
        cases.wait()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
