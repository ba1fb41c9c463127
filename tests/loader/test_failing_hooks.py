"""An exception in a function of the user's stays what it is, and says which worker, batch and windows it was about."""

import gc
import re
import traceback

import pytest
from of_users import FailingDataset, Fails, FailsAlways, OwnNormalizer, rows_of
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import epistream as es
from epistream.errors import FormatError, WorkerError
from epistream.loader.reading.reader import EpisodeReader
from epistream.loader.samples import failures

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it

LINE = "# the line of the user's"
LOADERS = {
    "nothing": {"num_workers": 0, "num_threads": 0},
    "threads": {"num_workers": 0, "num_threads": 2},
    "forked": {"num_workers": 2},
    "spawned": {"num_workers": 1, "start_method": "spawn"},
}
WAYS = (*LOADERS, "stream", "stock", "stock forked", "stock spawned", "stateful", "stateful forked")
READERS = {
    "nothing": r"this process \(pid \d+\)",
    "threads": r"thread [01] of 2",
    "forked": r"worker [01] of 2 \(pid \d+\)",
    "spawned": r"worker 0 of 1 \(pid \d+\)",
    "stream": r"this process \(pid \d+\)",
    "stock": r"this process \(pid \d+\)",
    "stateful": r"this process \(pid \d+\)",
    "stock forked": r"worker [01] of 2 of a DataLoader \(pid \d+\)",
    "stock spawned": r"worker 0 of 1 of a DataLoader \(pid \d+\)",
    "stateful forked": r"worker [01] of 2 of a DataLoader \(pid \d+\)",
}


def iterated(stream, way, on_device=None):
    if way in LOADERS:
        with es.StreamingLoader(stream, **LOADERS[way], on_device=on_device, timeout_s=60) as loader:
            yield from loader
        return
    kind = StatefulDataLoader if way.startswith("stateful") else DataLoader
    workers = {"num_workers": 2 if "forked" in way else 1, "timeout": 60} if " " in way else {}
    if "spawned" in way:
        workers["multiprocessing_context"] = "spawn"
    yield from stream if way == "stream" else kind(stream, batch_size=None, **workers)


class Caught:
    """What is left of an exception: torch ends a loader's workers when its last frame is gone."""

    def __init__(self, batches):
        self.count, self.seen, self.kind = 0, "", None
        try:
            for _ in batches:
                self.count += 1
        except Exception as error:
            self.kind = type(error)
            self.seen = "".join(traceback.format_exception(error))
            traceback.clear_frames(error.__traceback__)
        gc.collect()


def caught_of(batches):
    """The type of the exception, how many batches came before it, and what a user sees of it."""
    caught = Caught(batches)
    return caught.kind, caught.count, caught.seen


@pytest.fixture(scope="module")
def order(aloha_files):
    """The windows of each batch of epoch 1."""
    stream = es.EpisodeStream(list(map(str, aloha_files)), batch_size=10, features=["action"])
    stream.set_epoch(1)
    return [rows_of(batch) for batch in stream]


@pytest.mark.parametrize("way", WAYS)
def test_failing_transform_is_told_with_worker_batch_and_windows(aloha_files, order, way):
    number, at = 5, order[5][3]
    files = list(map(str, aloha_files))
    stream = es.EpisodeStream(files, batch_size=10, features=["action"], transform=Fails(*at))
    stream.set_epoch(1)
    error, count, seen = caught_of(iterated(stream, way))
    assert error is ValueError
    assert count == number
    assert "no such gripper" in seen
    assert LINE in seen
    assert re.search(rf"epistream: this was batch 5 of epoch 1, read by {READERS[way]}, of these windows:", seen)
    for episode in {row[0] for row in order[number]}:
        steps = ", ".join(str(step) for one, step in order[number] if one == episode)
        assert re.search(rf"  episode {episode} \({re.escape(files[episode])}\): steps? {steps}\n", seen)
    assert seen.count("epistream: this was") == 1


@pytest.mark.parametrize("way", ["nothing", "forked"])
def test_failing_function_on_the_device_is_told_of_its_own_batch(aloha_shards, way):
    whole = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], shuffle=False)
    rows = [rows_of(batch) for batch in whole]
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], shuffle=False)
    error, count, seen = caught_of(iterated(stream, way, Fails(*rows[2][7])))
    assert (error, count) == (ValueError, 2)
    assert "this was batch 2 of epoch 0" in seen
    assert "step 20" not in seen
    assert "steps 20, 21, 22, 23, 24, 25, 26, 27, 28, 29\n" in seen
    assert "shard-000000.tar" in seen
    assert LINE in seen


@pytest.mark.parametrize("option", ["sample_format", "transform", "normalize"])
@pytest.mark.parametrize("way", ["stream", "forked", "stock forked"])
def test_every_function_of_a_stream_is_told_of(aloha_shards, option, way):
    statistics = es.open_dataset(aloha_shards).statistics
    hook = OwnNormalizer(statistics, {"action": "mean_std"}) if option == "normalize" else FailsAlways()
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], **{option: hook})
    error, _, seen = caught_of(iterated(stream, way))
    assert error is ValueError
    assert "this was batch 0 of epoch 0" in seen
    assert LINE in seen


KINDS = {
    # What is raised, without workers and with those of a stock loader.
    "ValueError": (ValueError, ValueError),
    "KeyError": (KeyError, KeyError),
    "UnicodeDecodeError": (UnicodeDecodeError, UnicodeError),
    "StopIteration": (RuntimeError, RuntimeError),
    "AssertionError": (AssertionError, AssertionError),
    "WantsTwo": (None, ValueError),
    "Silent": (None, ValueError),
    "HasMessage": (None, ValueError),
    "Frozen": (None, None),
    "Local": (None, ValueError),
    "LocalException": (None, WorkerError),
    "unpicklable": (ValueError, ValueError),
}


@pytest.mark.timeout(90)
@pytest.mark.parametrize("way", ["stream", "stock forked"])
@pytest.mark.parametrize("kind", KINDS)
def test_exception_of_any_kind_arrives_with_its_words(aloha_shards, way, kind):
    stream = es.EpisodeStream(aloha_shards, batch_size=70, features=["action"], transform=FailsAlways(kind))
    error, _, seen = caught_of(iterated(stream, way))
    wanted = KINDS[kind][way == "stock forked"]
    assert error is wanted if wanted else error.__name__ == kind
    assert kind in seen or kind == "unpicklable"
    assert LINE in seen
    assert "epistream: this was batch 0 of epoch 0" in seen
    assert "and 6 more" in seen


def test_failing_stream_of_a_mixture_is_named(aloha_shards, aloha_files):
    streams = [
        es.EpisodeStream(aloha_shards, features=["action"]),
        es.EpisodeStream(list(map(str, aloha_files)), features=["action"], transform=FailsAlways()),
    ]
    error, _, seen = caught_of(iterated(es.Mixture(streams, [1, 1], batch_size=40), "forked"))
    assert error is ValueError
    assert "epistream: in stream 1 of the mixture, " in seen
    assert re.search(r"  stream 1 of the mixture, episode [01] \(.*hdf5\): step", seen)
    assert re.search(r"  stream 0 of the mixture, episode [01] \(.*tar\): step", seen)
    assert LINE in seen


def test_batch_is_counted_from_the_begin_of_the_epoch_also_after_a_resume(aloha_shards):
    order = [rows_of(b) for b in es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])]
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], transform=Fails(*order[8][0]))
    with es.StreamingLoader(stream, num_workers=0) as loader:
        for number, _ in enumerate(loader):
            if number == 5:
                break
        loader.resume()
        error, count, seen = caught_of(loader)
        assert (count, error) == (2, ValueError)
        assert "this was batch 8 of epoch 0" in seen
        assert loader.state_dict()["position"] == 80
    other = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], transform=Fails(*order[8][0]))
    other.set_epoch(0, 60)
    assert "this was batch 2 from window 60 of epoch 0" in caught_of(other)[2]


def test_rank_is_told_where_there_are_several(aloha_shards):
    world = es.World.of(1, 2)
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], world=world, transform=FailsAlways())
    assert "this was batch 0 of epoch 0 on rank 1 of 2, read by this process" in caught_of(stream)[2]


def test_secrets_of_urls_are_not_in_the_note(aloha_shards, monkeypatch):
    monkeypatch.setattr(failures, "_MOST_WINDOWS", 1)
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    dataset = stream.job.dataset
    object.__setattr__(dataset, "shard_url", ["http://u:PASS@h/a.tar?sig=SIG"] * dataset.num_shards)
    views = {"episode_index": stream.job.dataset.episode_shard[:1] * 0, "step_index": dataset.episode_shard[:1] * 0}
    text = str(failures.Origin(stream.job.parts, views, "batch 0"))
    assert "http://***@h/a.tar?***" in text
    assert "SIG" not in text
    assert "PASS" not in text


def test_before_python_3_11_the_note_is_part_of_the_message(aloha_shards):
    class Old(ValueError):
        """Without add_note, as exceptions were."""

        def __getattribute__(self, name):
            if name == "add_note":
                raise AttributeError(name)
            return super().__getattribute__(name)

    error = Old("no such gripper", 3)
    failures.add_note(error, lambda: "in batch 3")
    assert error.args == ("no such gripper\nin batch 3", 3)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("hook", ["instruction", "normalizer"])
def test_hook_of_an_episodic_dataset_is_told_with_its_episode_and_step(aloha_files, hook, num_workers):
    cameras = ["top"]
    dataset = FailingDataset(list(map(str, aloha_files)), cameras, ctrl_space="joint")
    dataset.ctrl_space = hook
    if hook == "normalizer":
        dataset.set_action_normalizers(FailsAlways("Local"))
    loader = DataLoader(dataset, batch_size=2, sampler=[83, 3], num_workers=num_workers, timeout=60 * num_workers)
    error, _, seen = caught_of(loader)
    assert issubclass(error, ValueError)
    assert LINE in seen
    assert f"epistream: this was episode 1 ({aloha_files[1]}), step 3, in " in seen
    assert ("worker 0 of 1 of a DataLoader" if num_workers else "this process") in seen


@pytest.mark.parametrize("num_workers", [0, 1])
def test_hook_of_an_episodic_dataset_that_raises_stop_iteration_ends_no_epoch(aloha_files, num_workers):
    dataset = FailingDataset(list(map(str, aloha_files)), ["top"], ctrl_space="joint")
    dataset.set_action_normalizers(FailsAlways("StopIteration"))
    error, _, seen = caught_of(DataLoader(dataset, batch_size=2, num_workers=num_workers, timeout=60 * num_workers))
    assert error is RuntimeError
    assert "a hook or normalizer of the dataset raised StopIteration" in seen
    assert f"epistream: this was episode 0 ({aloha_files[0]}), step 0, in " in seen


@pytest.mark.parametrize("way", ["threads", "forked"])
@pytest.mark.parametrize("kind", [KeyError, FormatError])
def test_what_fails_in_a_worker_itself_is_told_with_the_worker_and_its_batch(aloha_shards, monkeypatch, way, kind):
    read = EpisodeReader.read

    def fails(self, windows, out, *arguments, **options):
        if 30 in windows.step:
            raise kind("torn at 30")
        return read(self, windows, out, *arguments, **options)

    monkeypatch.setattr(EpisodeReader, "read", fails)
    stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"], shuffle=False)
    error, count, seen = caught_of(iterated(stream, way))
    assert (error, count) == (WorkerError if kind is KeyError else FormatError, 1)
    assert re.search(r"worker 1 \(pid \d+\), batch 1 from window 0 of epoch 0 on", seen)
    assert "torn at 30" in seen
    assert "in fails" in seen or kind is FormatError
