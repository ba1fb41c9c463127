"""Lightning's Trainer over StreamingLoaders: a run goes on from any checkpoint as if it had never ended."""

import logging
from collections import Counter
from functools import partial
from itertools import accumulate

import lightning
import pytest
import torch
from launching import BATCH_SIZE, LENGTHS
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from lightning_runs import QUIET, Noting, Run, differences, num_seen, windows_of

import epistream as es
from epistream.errors import StateError
from epistream.integrations.lightning import ResumeAnywhere

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own, of torch
    pytest.mark.filterwarnings(
        "ignore:Be aware that when using `ckpt_path`:UserWarning"
    ),  # ModelCheckpoint is left out
]
FEATURES = ["action", "observation.robot0_eef_pos"]
NOBODY = {"num_workers": 0, "num_threads": 0}
EVERYTHING = Counter((e, t) for e, length in enumerate(LENGTHS) for t in range(length))
STEP, EPOCH, CHECK = "on_train_batch_end", "on_train_epoch_end", "on_validation_end"


@pytest.fixture(autouse=True)
def quiet(caplog):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def stream_of(made_grid):
    """Makes the stream of the grid, with changes."""

    def make(**changes):
        given = {"batch_size": BATCH_SIZE, "features": FEATURES, "seed": 3, "split": None}
        return es.EpisodeStream(made_grid, **{**given, **changes})

    return make


@pytest.fixture(scope="session")
def loader_of(stream_of):
    """Makes a loader over a stream of the grid, with changes."""
    return lambda workers=NOBODY, **changes: es.StreamingLoader(stream_of(**changes), **workers)


@pytest.fixture(scope="session")
def mixture_of(stream_of):
    """Makes a loader over two streams of the grid."""

    def make(**changes):
        streams = [stream_of(), stream_of(seed=5, shuffle=True)]
        return es.StreamingLoader(es.Mixture(streams, [2, 1], batch_size=BATCH_SIZE, **changes), **NOBODY)

    return make


# Name: where checkpoints are written, every how many times, how Lightning gets the loaders, the Trainer's settings.
SETTINGS = {
    "epochs": ((STEP, EPOCH), 2, "fit", {}),
    "epochs, loaders of the module": ((STEP, EPOCH), 7, "module", {}),
    "epochs, loaders of a data module": ((STEP, EPOCH), 7, "datamodule", {}),
    "no distributed sampler": ((STEP,), 9, "fit", {"use_distributed_sampler": False}),
    "steps": ((STEP,), 7, "fit", {"max_epochs": -1, "max_steps": 47}),
    "epochs and steps": ((STEP,), 9, "fit", {"max_epochs": 3, "max_steps": 100}),
    "five batches": ((STEP, EPOCH), 1, "fit", {"limit_train_batches": 5}),
    "half an epoch": ((STEP, EPOCH), 4, "fit", {"limit_train_batches": 0.5}),
    "gradients of four batches": ((STEP, EPOCH), 5, "fit", {"accumulate_grad_batches": 4}),
    "loaders made anew": ((STEP, EPOCH), 7, "module", {"reload_dataloaders_every_n_epochs": 1}),
    "loaders made anew every second": ((STEP, EPOCH), 9, "datamodule", {"reload_dataloaders_every_n_epochs": 2}),
}
CHECKED = {
    "after an epoch": ((STEP, CHECK, EPOCH), 4, "fit", {}),
    "twice an epoch": ((STEP, CHECK), 5, "module", {"val_check_interval": 0.5}),
    "every seven batches": ((STEP, CHECK), 7, "datamodule", {"val_check_interval": 7, "limit_val_batches": 3}),
    "every ten steps": ((CHECK,), 1, "fit", {"val_check_interval": 10, "check_val_every_n_epoch": None}),
    "every second epoch": ((CHECK, EPOCH), 1, "fit", {"check_val_every_n_epoch": 2}),
    "twice an epoch, steps": ((CHECK, STEP), 7, "fit", {"val_check_interval": 0.5, "max_steps": 50}),
    "amid a check": (("on_validation_batch_end",), 2, "fit", {"val_check_interval": 0.5}),
    "all of it before training": ((CHECK,), 1, "fit", {"num_sanity_val_steps": -1}),
    "loaders made anew": ((STEP, CHECK), 11, "module", {"reload_dataloaders_every_n_epochs": 1}),
}


# What 'make grid' runs beside: cases that take long and differ from their neighbours in little.
REST = pytest.mark.grid
LONG = {"after an epoch", "twice an epoch, steps", "twice an epoch"}


def resume_from_each(run, folder, hooks, every):
    """A run with checkpoints, from each of which another one must go on as it did."""
    whole = run.fit_and_save(folder, hooks, every)
    assert len(list(folder.glob("*.ckpt"))) >= 2
    assert differences(run, folder, whole) == []
    return whole


@pytest.mark.parametrize("name", SETTINGS)
def test_run_goes_on_from_each_checkpoint_as_if_it_had_not_ended(name, loader_of, tmp_path):
    hooks, every, how, settings = SETTINGS[name]
    resume_from_each(Run(loader_of, how=how, settings=settings), tmp_path, hooks, every)


@pytest.mark.parametrize("workers", [{"num_workers": 0}, {"num_workers": 2}], ids=["threads", "processes"])
def test_run_with_workers_goes_on_from_each_checkpoint(workers, loader_of, tmp_path):
    run = Run(partial(loader_of, workers), val=partial(loader_of, workers, shuffle=False))
    resume_from_each(run, tmp_path, (STEP, EPOCH), 9)


@pytest.mark.parametrize("name", [pytest.param(one, marks=REST if one in LONG else ()) for one in CHECKED])
def test_run_with_validation_goes_on_from_each_checkpoint(name, loader_of, tmp_path):
    hooks, every, how, settings = CHECKED[name]
    check = partial(loader_of, batch_size=20, shuffle=False)
    whole = resume_from_each(Run(loader_of, val=check, how=how, settings=settings), tmp_path, hooks, every)
    wanted = [windows_of(batch) for batch in check()]
    for step in {step for step, _ in whole.checked}:
        each = [windows for at, windows in whole.checked if at == step]
        assert each == wanted[: len(each)]


@pytest.mark.parametrize("workers", [NOBODY, {"num_workers": 1}], ids=["nobody", "processes"])
def test_sanity_check_leaves_all_of_the_validation_for_later(workers, loader_of, tmp_path, caplog):
    """It stops after two batches, by which nobody is to be alarmed either."""
    check = partial(loader_of, workers, batch_size=20, shuffle=False, remainder="pad")
    seen = Run(loader_of, val=check, settings={"num_sanity_val_steps": 2}).fit(tmp_path).checked
    wanted = [windows_of(batch) for batch in check()]
    assert [windows for _, windows in seen] == 3 * wanted
    assert not [record for record in caplog.records if "full pass" in record.getMessage()]


def test_epochs_are_those_of_a_loop_without_a_trainer(loader_of, tmp_path):
    seen = Run(loader_of, val=loader_of).fit(tmp_path).seen
    with loader_of() as loader:
        assert seen == [windows_of(batch) for _ in range(3) for batch in loader]


@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted", 96])
def test_mixture_goes_on_from_each_checkpoint_in_the_order_of_a_plain_loop(stop, mixture_of, tmp_path):
    whole = resume_from_each(Run(partial(mixture_of, stop=stop)), tmp_path, (STEP, EPOCH), 11)
    with mixture_of(stop=stop) as loader:
        assert whole.seen == [windows_of(batch) for _ in range(3) for batch in loader]


@pytest.mark.parametrize("remainder", ["pad", "uneven"])
def test_epochs_with_a_remainder_go_on_from_each_checkpoint(remainder, loader_of, tmp_path):
    resume_from_each(Run(partial(loader_of, batch_size=10, remainder=remainder)), tmp_path, (STEP, EPOCH), 5)


@pytest.mark.parametrize(
    "mode", ["min_size", *(pytest.param(one, marks=REST) for one in ("max_size", "max_size_cycle"))]
)
def test_two_loaders_of_unequal_length_go_on_from_each_checkpoint(mode, loader_of, tmp_path):
    def make():
        return CombinedLoader({"long": loader_of(), "short": loader_of(batch_size=20, seed=5)}, mode)

    # With the callback also from the last batch of an epoch, at which the short one is in a lap of its own.
    run = Run(make, settings={"callbacks": [ResumeAnywhere()]})
    whole = resume_from_each(run, tmp_path, (STEP, EPOCH), 5)
    assert len(whole.seen) == 3 * (7 if mode == "min_size" else 18)


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
def test_two_loaders_go_on_from_the_middle_of_an_epoch_without_a_callback(mode, loader_of, tmp_path):
    def make():
        return CombinedLoader([loader_of(), loader_of(batch_size=20, seed=5)], mode)

    resume_from_each(Run(make), tmp_path, (STEP,), 10)


def test_several_validation_loaders_go_on_from_each_checkpoint(loader_of, tmp_path):
    def checks():
        return [loader_of(batch_size=20, seed=5), loader_of(batch_size=30, shuffle=False)]

    whole = resume_from_each(Run(loader_of, val=checks), tmp_path, (STEP, CHECK), 11)
    assert len(whole.checked) == 3 * (7 + 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"every_n_train_steps": 7},
        {"every_n_train_steps": 7, "save_on_train_epoch_end": True},
        {"save_on_train_epoch_end": True},
        {"save_on_train_epoch_end": False},
        {"every_n_epochs": 2, "save_last": True},
    ],
    ids=str,
)
def test_run_goes_on_from_what_modelcheckpoint_saves(settings, loader_of, tmp_path):
    run = Run(loader_of, val=partial(loader_of, batch_size=20), settings={"enable_checkpointing": True})
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **settings)
    whole = run.fit(tmp_path, callbacks=[saver])
    assert list(tmp_path.glob("*.ckpt"))
    assert differences(Run(loader_of, val=run.val), tmp_path, whole) == []


def test_second_fit_of_a_trainer_goes_on_with_the_next_epoch(loader_of, tmp_path):
    whole, model, loader = Run(loader_of).fit(tmp_path, max_epochs=4), Noting(), loader_of()
    trainer = lightning.Trainer(**QUIET, max_epochs=2)
    trainer.fit(model, loader)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, loader)
    assert model.seen == whole.seen


def test_loader_that_another_trainer_used_begins_with_the_first_epoch_again(loader_of, tmp_path):
    loader = loader_of()
    first, second = (Run(lambda: loader).fit(tmp_path, max_epochs=2).seen for _ in range(2))
    assert first == second


def test_state_that_is_loaded_by_hand_before_fit_is_where_training_begins(loader_of, tmp_path):
    whole, loader = Run(loader_of).fit(tmp_path).seen, loader_of()
    with loader_of() as before:
        for _ in zip(range(5), before, strict=False):
            pass
        loader.load_state_dict(before.state_dict())
    assert Run(lambda: loader).fit(tmp_path, max_epochs=1).seen == whole[5:18]


def test_overfit_batches_repeats_the_first_batches_of_a_stream_that_is_not_shuffled(loader_of, tmp_path):
    run = Run(partial(loader_of, shuffle=False), settings={"overfit_batches": 3})
    whole = resume_from_each(run, tmp_path, (STEP,), 1)
    assert whole.seen == whole.seen[:3] * 3


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfit_batches_of_a_shuffled_stream_is_refused(loader_of, tmp_path):
    with pytest.raises(ValueError, match=r"StreamingLoader\(.* needs to subclass"):
        Run(loader_of, settings={"overfit_batches": 3}).fit(tmp_path)


def test_state_of_another_stream_is_refused_by_the_value_that_differs(loader_of, tmp_path):
    Run(loader_of).fit_and_save(tmp_path, (STEP,), 7, max_epochs=1)
    with pytest.raises(StateError, match="seed is 3, this stream has 4"):
        Run(partial(loader_of, seed=4)).fit(tmp_path, ckpt_path=tmp_path / f"007-{STEP}.ckpt")


def assert_broken_epoch_is_made_whole(first, rest, global_batch):
    """No window twice in an epoch, none missing but what fills no batch: in the broken epoch and all others."""
    seen = [windows for batch in first + rest for windows in batch]
    broken, given = divmod(sum(len(batch) for batch in first), sum(EVERYTHING.values()))
    lengths = [144 // global_batch * global_batch] * (3 - broken)
    if given:
        lengths[0] = given + (144 - given) // global_batch * global_batch
    at = broken * sum(len(batch) for batch in first[: 144 // len(first[0])])
    for start, length in zip(accumulate(lengths, initial=at), lengths, strict=False):
        epoch = Counter(seen[start : start + length])
        assert len(epoch) == epoch.total() == length
    assert len(seen) == at + sum(lengths)


@pytest.mark.parametrize(
    "sizes", [(8, 16), (24, 8), *(pytest.param(one, marks=REST) for one in ((16, 8), (8, 24), (16, 24)))], ids=str
)
@pytest.mark.parametrize("settings", [{}, {"max_steps": 1000}], ids=["epochs", "steps"])
def test_resume_with_another_batch_size_gives_every_window_of_the_broken_epoch_once(
    sizes, settings, loader_of, tmp_path, caplog
):
    first, second = (Run(partial(loader_of, batch_size=size), settings=settings) for size in sizes)
    whole = first.fit_and_save(tmp_path, (STEP, EPOCH), 5)
    for checkpoint in sorted(tmp_path.glob("*.ckpt")):
        rest = second.fit(tmp_path, ckpt_path=checkpoint, callbacks=[ResumeAnywhere()]).seen
        assert_broken_epoch_is_made_whole(whole.seen[: num_seen(checkpoint)[0]], rest, sizes[1])
    assert not [record for record in caplog.records if record.name.startswith("epistream")]


def test_resume_with_a_larger_batch_and_no_callback_is_warned_of(loader_of, tmp_path, caplog):
    Run(loader_of).fit_and_save(tmp_path, (STEP,), 6, max_epochs=1)
    larger = Run(partial(loader_of, batch_size=16))
    seen = larger.fit(tmp_path, ckpt_path=tmp_path / f"006-{STEP}.ckpt", max_epochs=1).seen
    assert len(seen) < 6  # of the six batches that the rest of the epoch has
    assert "ResumeAnywhere() to the callbacks" in caplog.text


def test_validation_after_a_broken_epoch_is_kept_on_another_batch_size(loader_of, tmp_path):
    check = partial(loader_of, batch_size=20)
    Run(loader_of, val=check).fit_and_save(tmp_path, (STEP,), 5, max_epochs=1)
    for size in (4, 16):
        run = Run(partial(loader_of, batch_size=size), val=check, settings={"callbacks": [ResumeAnywhere()]})
        resumed = run.fit(tmp_path, ckpt_path=tmp_path / f"005-{STEP}.ckpt", max_epochs=2)
        steps = Counter(step for step, _ in resumed.checked)
        assert list(steps.values()) == [7, 7]


@pytest.mark.parametrize(
    ("hook", "settings"),
    [
        (EPOCH, {"max_steps": 1000}),
        (EPOCH, {"max_steps": 1000, "val_check_interval": 0.5}),
        (EPOCH, {"max_steps": 14, "limit_train_batches": 5}),
        ("on_train_epoch_start", {}),
    ],
    ids=str,
)
def test_callback_keeps_the_epoch_after_a_checkpoint_between_two_whole(hook, settings, loader_of, tmp_path):
    run = Run(loader_of, val=partial(loader_of, batch_size=20), settings={**settings, "callbacks": [ResumeAnywhere()]})
    resume_from_each(run, tmp_path, (hook,), 1)


@pytest.mark.parametrize("step", [5, 17, 18])
def test_callback_gives_the_batch_of_a_step_again_that_failed_and_was_saved(step, loader_of, tmp_path):
    run = Run(loader_of, settings={"callbacks": [ResumeAnywhere()]})
    whole, failing = run.fit(tmp_path), Noting(raises_in=step)
    saver = ModelCheckpoint(tmp_path, "failed", save_on_exception=True)
    with pytest.raises(InterruptedError):
        run.fit(tmp_path, failing, callbacks=[saver], enable_checkpointing=True)
    (checkpoint,) = tmp_path.glob("*.ckpt")
    assert failing.seen + run.fit(tmp_path, ckpt_path=checkpoint).seen == whole.seen


def test_callback_changes_nothing_where_lightning_counts_right(loader_of, tmp_path):
    settings = {"callbacks": [ResumeAnywhere()], "val_check_interval": 0.5}
    run = Run(loader_of, val=partial(loader_of, batch_size=20), settings=settings)
    resume_from_each(run, tmp_path, (STEP, CHECK, EPOCH), 5)


class Iterating(Noting):
    """Its steps take batches themselves."""

    def training_step(self, dataloader_iter) -> torch.Tensor:
        batch, batch_index, _ = next(dataloader_iter)
        return super().training_step(batch, batch_index)


@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument")
def test_steps_that_take_batches_themselves_go_on_from_each_checkpoint(loader_of, tmp_path):
    run = Run(loader_of)
    run.fit_and_save(tmp_path, (STEP,), 7)
    whole = run.fit(tmp_path, Iterating()).seen
    for checkpoint in tmp_path.glob("*.ckpt"):
        assert run.fit(tmp_path, Iterating(), ckpt_path=checkpoint).seen == whole[num_seen(checkpoint)[0] :]


@pytest.mark.filterwarnings("ignore:predict returned None")
@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_validate_test_and_predict_read_the_first_epoch_each_time(method, loader_of):
    model = Noting()

    def step(batch, batch_idx):
        model.seen.append(windows_of(batch))

    model.validation_step = model.test_step = model.predict_step = step
    for _ in range(2):
        getattr(lightning.Trainer(**QUIET), method)(
            model, loader_of(), **({} if method == "predict" else {"verbose": False})
        )
    assert model.seen == 2 * [windows_of(batch) for batch in loader_of()]
