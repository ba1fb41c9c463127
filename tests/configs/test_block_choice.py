"""Whether the tuner takes blocks: where they are faster and fit, and nothing is asked where there is no choice."""

import pytest

import epistream as es
from epistream.configs import block_choice
from epistream.configs.block_choice import BlockChooser
from epistream.configs.survey import PLAIN, Place, Survey
from epistream.loader.measuring.blocks import JobSize
from epistream.loader.measuring.rates import LoadRate

GIB = 1 << 30


@pytest.fixture(scope="module")
def video_shards(tmp_path_factory, aloha_files):
    out = tmp_path_factory.mktemp("choice") / "shards"
    es.pack([str(file) for file in aloha_files], out, codec="h264", preset="ultrafast", image_size=(64, 48))
    return out


def survey_of(windows_per_s=100.0, more_frames=1.0):
    rates = {kind: LoadRate(2, windows_per_s) for kind in ("processes", "threads")}
    return Survey(
        place=Place("a disk", shared_by_pages=True),
        dataset_bytes=GIB,
        num_windows=140,
        decoded_bytes=100 * GIB,
        batch_size=8,
        batch_bytes=1 << 20,
        num_cores=2,
        alone=rates,
        together=rates,
        more_frames=more_frames,
        finish_s=1e-4,
        fetch_bytes_per_s=1e9,
        main_bytes=1 << 20,
    )


def choose(monkeypatch, source, other, *, room=GIB, found=None, **given):
    """The choice, and in which order the sample was read meanwhile."""
    asked = []

    def measured_in(order, *_):
        asked.append(order)
        return other

    monkeypatch.setattr(block_choice, "measured_in", measured_in)
    base = es.load_config(batch_size=8, **given)
    whole = es.EpisodeStream.from_config(base, str(source), **PLAIN)
    chooser = BlockChooser(base, whole, whole, JobSize(8), 1.0)
    return chooser.choose(found or survey_of(), es.OrderOptions(lanes=1, resident_shards=2), room), asked


@pytest.mark.parametrize(("other", "by"), [(111.0, "blocks"), (109.0, "windows")])
def test_blocks_are_taken_for_windows_of_several_steps_where_they_are_a_tenth_faster(
    monkeypatch, aloha_shards, other, by
):
    choice, [order] = choose(monkeypatch, aloha_shards, other, obs="-1:1")
    assert (choice.by, order.by, order.block_steps) == (by, "blocks", 32)
    if by == "windows":
        assert choice.reason == "by blocks only 1.09 times as fast"
        assert list(choice.values) == ["order.by"]
        assert choice.survey.together["processes"].windows_per_s == 100.0
        return
    assert choice.reason.startswith("1.1 times as fast as by windows")
    values = {key: value for key, (value, _) in choice.values.items()}
    assert values == {"order.by": "blocks", "stream.decode": "auto", "order.block_steps": 32, "order.pool_blocks": 16}
    assert choice.survey.together["processes"].windows_per_s == pytest.approx(111.0)
    # 3 blocks of the first episode and 2 of the second are all there are, of 33 steps of two cameras each.
    assert 0 <= choice.pool.num_bytes - choice.pool.num_slots * 33 * 2 * 480 * 640 * 3 < 1 << 20
    assert choice.pool.num_slots == 5


def test_blocks_are_compared_with_what_windows_of_the_whole_dataset_decode(monkeypatch, aloha_shards):
    choice, _ = choose(monkeypatch, aloha_shards, 90.0, obs="-1:1", found=survey_of(more_frames=1.5))
    assert choice.reason.startswith("1.4 times as fast")  # of 100 / 1.5
    assert (choice.survey.more_frames, choice.survey.alone["threads"].windows_per_s) == (1.0, pytest.approx(90.0))


def test_pool_that_does_not_fit_leaves_windows_without_measuring(monkeypatch, aloha_shards):
    choice, asked = choose(monkeypatch, aloha_shards, 900.0, room=10 << 20, obs="-1:1")
    assert (choice.by, choice.pool, asked) == ("windows", None, [])
    assert "and 10.0 MiB of memory are left" in choice.reason


def test_video_is_read_by_blocks_and_told_what_windows_would_cost(monkeypatch, video_shards):
    choice, [order] = choose(monkeypatch, video_shards, 25.0)
    assert (choice.by, choice.note, order.by) == ("blocks", None, "windows")
    assert choice.reason.startswith("4.0 times as fast")
    assert choice.pool.options.block_steps == 30
    assert choice.survey.together["processes"].windows_per_s == 100.0


def test_video_whose_pool_does_not_fit_is_read_by_windows_with_a_note_of_what_it_costs(monkeypatch, video_shards):
    choice, _ = choose(monkeypatch, video_shards, 25.0, room=1 << 20)
    assert (choice.by, choice.pool) == ("windows", None)
    assert choice.survey.together["processes"].windows_per_s == pytest.approx(25.0)
    assert choice.note == (
        "video in groups of 30 is read by windows, for each of which up to 30 frames are decoded: 25 windows/s, and "
        "100 by blocks"
    )


@pytest.mark.parametrize(
    "given",
    [
        {},  # one step of single pictures
        {"obs": "-1:1", "features": ["action"]},
        {"obs": "-1:1", "shuffle": False},
        {"obs": "-1:1", "by": "windows"},
        {"obs": "-1:1", "pool_blocks": 64},
    ],
)
def test_nothing_is_chosen_where_there_is_no_choice_or_the_user_made_it(monkeypatch, aloha_shards, given):
    assert choose(monkeypatch, aloha_shards, 900.0, **given) == (None, [])
