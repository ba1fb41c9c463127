"""What reports, plans and the tuner advise about blocks and video, taken."""

import re
import shlex
from dataclasses import replace

import pytest
from click.testing import CliRunner
from words.advised import taken

import epistream as es
from epistream.commands import cli
from epistream.configs.repacking import video_note
from epistream.loader.frames.decode_advice import decoded_again
from epistream.loader.frames.keeping import DecodedStats
from epistream.loader.measuring.blocks import JobSize, memory_advice
from epistream.loader.measuring.pictures import compare_pictures
from epistream.loader.monitoring.diagnosis import Situation, find_limit, find_remarks
from epistream.loader.monitoring.stats import LoaderStats
from epistream.loader.workers.thread_time import ThreadTime

BUSY = LoaderStats(
    num_batches=100, num_windows=800, elapsed_s=10.0, data_wait_s=5.0, worker_busy_s=10.0, effort=ThreadTime(9.5, 0, 0)
)
FRAMES = 140 * 2  # of two cameras


def stream_of(source, tmp_path, **options):
    cache = es.CacheOptions(directory=str(tmp_path / "cache"))
    return es.EpisodeStream(source, **{"batch_size": 10, "image_size": (48, 64), "cache": cache, **options})


def again(stream):
    part = stream.job.part
    return decoded_again(part.features, part.window, part.frames, part.plan)


def arguments(cure):
    return eval(f"dict({cure})", {"OrderOptions": es.OrderOptions})


def epoch(stream):
    """What became of the frames of an epoch, and its windows."""
    with es.StreamingLoader(stream, num_workers=0, num_threads=1) as loader:
        num_windows = sum(len(batch["action"]) for batch in loader)
        return loader.stats().decoded, num_windows


@pytest.fixture(scope="module")
def video_shards(tmp_path_factory, aloha_files):
    out = tmp_path_factory.mktemp("video") / "shards"
    es.pack([str(file) for file in aloha_files], out, codec="h264", preset="ultrafast", image_size=(64, 48))
    return out


@taken("loader/frames/decode_advice.py", "decode=")
@pytest.mark.parametrize("decode", ["auto", "per_read"])
@pytest.mark.parametrize("is_video", [False, True])
def test_order_that_the_report_names_decodes_each_frame_once(aloha_shards, video_shards, tmp_path, decode, is_video):
    window = es.Window(obs=range(1)) if is_video else es.Window(obs=range(-1, 1))
    source = video_shards if is_video else aloha_shards
    options = {"window": window, "decode": decode}
    stream = stream_of(source, tmp_path, order=es.OrderOptions(by="windows"), **options)
    found = again(stream)
    finding = find_limit(BUSY, Situation(num_workers=2, num_cores=2, decoded_again=found))
    assert finding.limit == "decoding"
    assert ("up to 30 frames of a group" if is_video else "up to 2 windows") in finding.why
    assert finding.cure.startswith(f"{found.cure}, which decodes it once; or all 2 cores are used")
    better = stream_of(source, tmp_path, **{**options, **arguments(found.cure)})
    assert again(better) is None
    decoded, num_windows = epoch(better)
    assert (decoded.num_unpooled, num_windows) == (0, 140)
    # The first frame of a block is shown by windows of the block before, too.
    assert FRAMES <= decoded.num_decoded <= FRAMES + 2 * 3


@pytest.mark.parametrize(
    "options",
    [
        {"decode": "once", "window": es.Window(obs=range(-1, 1))},
        {"shuffle": False, "window": es.Window(obs=range(-1, 1))},
        {"features": ["action"], "window": es.Window(obs=range(-1, 1))},
        {},
    ],
)
def test_nothing_is_said_of_blocks_where_they_bring_nothing(aloha_shards, tmp_path, options):
    assert again(stream_of(aloha_shards, tmp_path, **options)) is None


def test_blocks_that_are_not_kept_name_what_keeps_them(video_shards, tmp_path):
    found = again(stream_of(video_shards, tmp_path, decode="per_read"))
    assert found.why == "blocks are not kept decoded"
    assert again(stream_of(video_shards, tmp_path, **arguments(found.cure))) is None


@pytest.mark.parametrize(
    "decoded",
    [
        DecodedStats(num_taken=90, num_decoded=10, num_kept=10),
        DecodedStats(num_taken=0, num_decoded=50, num_kept=50),  # kept for the next epoch
    ],
)
def test_nothing_is_said_of_blocks_where_frames_are_kept(aloha_shards, tmp_path, decoded):
    found = again(stream_of(aloha_shards, tmp_path, window=es.Window(obs=range(-1, 1))))
    finding = find_limit(replace(BUSY, decoded=decoded), Situation(num_workers=1, num_cores=2, decoded_again=found))
    assert finding.cure.startswith("num_workers=2")


@pytest.mark.parametrize(
    ("decoded", "why", "cure"),
    [
        (
            DecodedStats(num_unpooled=90, num_decoded=90, why="the budget is 1 MiB. Use pool_blocks=16, or: more."),
            "90 frames were decoded for one window alone, not once for their block: the budget is 1 MiB",
            "Use pool_blocks=16, or: more",
        ),
        (
            DecodedStats(num_unpooled=90, num_decoded=90, why="the cache is off"),
            "the cache is off",
            "a cache that is on",
        ),
        (
            DecodedStats(num_unpooled=9, num_taken=91, pool_bytes=1 << 20, why="none of the pool's 8 slots is free"),
            "none of the pool's 8 slots is free",
            "a smaller prefetch or fewer workers",
        ),
    ],
)
def test_pool_that_was_full_or_did_not_fit_is_told_with_what_would(decoded, why, cure):
    stats = replace(BUSY, decoded=decoded)
    finding = find_limit(stats, Situation(num_workers=2, num_cores=2))
    assert why in finding.why
    assert finding.cure.startswith(cure)
    assert [each.limit for each in find_remarks(stats, "decoding")] == []
    [remark] = find_remarks(stats, "training")
    assert (remark.limit, remark.share) == ("pool", decoded.num_unpooled / (decoded.num_unpooled + decoded.num_taken))
    quiet = replace(BUSY, decoded=replace(decoded, num_unpooled=1, num_taken=99))
    assert find_remarks(quiet, "training") == []


def test_budget_that_does_not_hold_the_pool_is_raised_as_the_report_says(aloha_shards, tmp_path):
    order = es.OrderOptions(by="blocks", lanes=1, block_steps=8, pool_blocks=8)
    small = es.CacheOptions(directory=str(tmp_path / "small"), budget_bytes="1MiB")
    decoded, _ = epoch(stream_of(aloha_shards, tmp_path, order=order, cache=small))
    assert decoded.num_unpooled == FRAMES
    finding = find_limit(replace(BUSY, decoded=decoded), Situation(num_workers=1, num_cores=1))
    assert re.search(r"the cache's budget is 1\.0 MiB, and the pool of decoded blocks takes \d\.\d MiB", finding.why)
    larger = es.CacheOptions(directory=str(tmp_path / "larger"), budget_bytes="16MiB")
    assert "budget_bytes" in finding.cure
    decoded, _ = epoch(stream_of(aloha_shards, tmp_path, order=order, cache=larger))
    assert (decoded.num_decoded, decoded.num_unpooled) == (FRAMES, 0)


@taken("loader/frames/block_pool_plan.py", "pool_blocks=")
def test_pool_that_a_budget_does_not_hold_names_one_that_fits(aloha_shards, tmp_path, caplog):
    order = es.OrderOptions(by="blocks", lanes=2, block_steps=4, pool_blocks=32)
    cache = es.CacheOptions(directory=str(tmp_path / "cache"), budget_bytes="8MiB")
    options = {"image_size": (96, 128), "cache": cache}
    stream_of(aloha_shards, tmp_path, order=order, **options)
    [told] = [record.getMessage() for record in caplog.records if "pool of decoded blocks" in record.getMessage()]
    fitting = int(re.search(r"Use pool_blocks=(\d+), or a larger budget\.$", told)[1])
    caplog.clear()
    stream_of(aloha_shards, tmp_path, order=replace(order, pool_blocks=fitting), **options)
    assert not caplog.records
    stream_of(aloha_shards, tmp_path, order=replace(order, pool_blocks=fitting + 2), **options)
    assert caplog.records


@taken("loader/measuring/blocks.py", "pool_blocks=", "by=")
def test_pool_that_a_budget_holds_is_what_the_advice_says(aloha_shards, tmp_path):
    order = es.OrderOptions(by="blocks", lanes=2, block_steps=4, pool_blocks=32)
    part, size = stream_of(aloha_shards, tmp_path, order=order).job.part, JobSize(1)
    whole = size.pool(part, part.plan.options).num_bytes + int(part.plan.shard_bytes.sum())
    assert memory_advice(part, size, whole) is None
    text = memory_advice(part, size, whole - (1 << 20))
    step = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", text.split("Use ")[1])}
    fitted = replace(part, plan=part.plan.with_options(replace(part.plan.options, **step)))
    assert memory_advice(fitted, size, whole - (1 << 20)) is None
    text = memory_advice(part, size, int(part.plan.shard_bytes.sum()) + 1)
    assert "use smaller block_steps, by='windows', or a larger budget" in text
    windows = replace(part, plan=part.plan.with_options(es.OrderOptions(by="windows", lanes=2)))
    assert memory_advice(windows, size, int(part.plan.shard_bytes.sum()) + 1) is None


@taken("configs/repacking.py", "epistream pack", "--codec", "--crf", "--gop")
def test_command_that_the_tuner_names_packs_video(aloha_files, tmp_path):
    source = aloha_files[1]
    stream = stream_of(source, tmp_path, image_size=None, features=["observation.images.top"])
    rows, missing = compare_pictures(stream.job, stream.job, int(stream.job.dataset.shard_bytes.sum()), 0.01)
    assert missing is None
    text = video_note(rows, stream, str(source), shared_by_pages=True, room=1 << 30)
    command = re.search(r"Pack with: epistream (pack .*)", text)[1]
    words = [str(tmp_path / "out") if word == "OUT" else word for word in shlex.split(command)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert {f.codec for f in es.open_dataset(tmp_path / "out").features.values() if f.kind == "frames"} == {"h264"}
    secret = video_note(rows, stream, "https://me:word@host/a.hdf5?sig=1", shared_by_pages=True, room=1 << 30)
    assert "word" not in secret
    assert "sig" not in secret
