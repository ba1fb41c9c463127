"""`epistream plan`: what it prints for a budget."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from epistream.commands.plan import command
from epistream.errors import OptionError
from epistream.sharding.format.features import Feature

MB = 1_000_000
TOP = "observation.images.top"


@pytest.fixture
def sixty_shards(monkeypatch):
    """A dataset of 60 shards of 1 MB, each of 10 episodes of 50 steps, which no file holds."""
    episode = np.arange(600)
    dataset = SimpleNamespace(
        url="s3://bucket/demo/",
        shard_url=[f"shard-{shard:06}.tar" for shard in range(60)],
        shard_bytes=np.full(60, 990_000),
        index_bytes=np.full(60, 10_000),
        episode_shard=episode // 10,
        episode_in_shard=episode % 10,
        episode_length=np.full(600, 50),
        episode_split=(episode >= 550).astype(np.uint8),
        splits=("train", "val"),
        fingerprint="f" * 32,
        features={
            "action": Feature("action", "array", "float32", (7,), "npy"),
            TOP: Feature(TOP, "frames", "uint8", (480, 640, 3), "jpeg", jpeg_channels="rgb"),
        },
        valid_ranges=(np.arange(601), np.stack([episode * 0, episode * 0 + 50], 1)),
    )
    monkeypatch.setattr("epistream.sharding.dataset.open_dataset", lambda *_, **__: dataset)
    return dataset


def run(*arguments):
    result = CliRunner().invoke(command, ["s3://bucket/demo/", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def figures(*arguments):
    return json.loads(run("--json", *arguments))


@pytest.mark.usefixtures("sixty_shards")
class TestPlanCommand:
    def test_plan_without_a_budget_takes_the_default_order_of_the_train_split(self):
        found = figures()
        assert (found["num_windows"], found["num_episodes"], found["num_shards"]) == (27_500, 550, 55)
        assert (found["lanes"], found["resident_shards"]) == (8, 26)
        assert found["num_bytes"] == 55 * MB
        assert found["budget_bytes"] is found["advice"] is None

    def test_plan_for_a_budget_takes_the_most_resident_shards_that_fit(self):
        found = figures("--budget", "24MB", "--split", "val", "--lanes", "1")
        assert (found["lanes"], found["resident_shards"]) == (1, 5)
        found = figures("--budget", "24MB")
        assert (found["lanes"], found["resident_shards"], found["open_shards"]) == (8, 16, 24)
        assert found["open_bytes"] == 24 * MB
        found = figures("--budget", "23MB")
        assert (found["lanes"], found["resident_shards"]) == (4, 16)
        assert found["advice"] is None

    def test_plan_for_a_tenth_of_the_data_sees_as_many_episodes_as_a_permutation_of_them(self):
        found = figures("--budget", "10%")
        assert found["budget_bytes"] == 5_500_000
        assert (found["lanes"], found["resident_shards"], found["open_shards"]) == (1, 4, 5)
        # 40 resident episodes, 64 draws: uniform draws would see 32 of them.
        assert found["distinct_residents"] == pytest.approx(40 * (1 - (1 - 1 / 40) ** 64), abs=0.5)
        assert all(distinct > 0.97 * found["distinct_residents"] for distinct in found["distinct"])
        assert found["distinct_permuted"] == pytest.approx(550 * (1 - (1 - 1 / 550) ** 64), abs=0.1)

    def test_plan_over_nodes_shares_the_fetching_by_lanes(self):
        whole = figures("--resident-shards", "16")
        # Each of the 7 cuts between lanes puts a shard into two of them.
        assert 55 * MB <= whole["fetch_bytes"] <= (55 + 7) * MB
        nodes = figures("--resident-shards", "16", "--nodes", "4", "--ranks-per-node", "2", "--batch-size", "8")
        assert nodes["global_batch"] == 64
        assert nodes["fetch_bytes"] == sum(nodes["fetch_bytes_per_node"]) == whole["fetch_bytes"]
        assert max(nodes["fetch_bytes_per_node"]) <= 18 * MB
        assert nodes["distinct"] == whole["distinct"]
        uneven = figures("--resident-shards", "16", "--nodes", "3")
        assert uneven["fetch_bytes"] == 3 * whole["fetch_bytes"]

    def test_plan_that_keeps_all_shards_fetches_each_once(self):
        assert figures("--resident-shards", "600")["fetch_bytes"] == 55 * MB

    def test_first_batch_draws_from_the_first_segments(self):
        # Two shards a lane; one at a cut may be among the first of both of its lanes.
        (size,) = figures("--resident-shards", "16")["first_batch_bytes"]
        assert 14 * MB <= size <= 16 * MB

    def test_plan_of_options_that_a_budget_cannot_hold_says_what_would_fit(self):
        output = run("--budget", "10MB", "--lanes", "8", "--resident-shards", "24")
        assert "cache budget: 9.5 MiB, but the order draws from 32 shards at once" in output
        assert "Use lanes=2, resident_shards=8" in output

    def test_plan_prints_a_table_with_all_of_it(self):
        output = run("--budget", "50%")
        for words in ("27,500 windows of 550 episodes in 55 shards, 52.5 MiB", "8 lanes, resident shards K = 16",
                      "up to 24 shards at once, 22.9 MiB; budget 26.2 MiB", "distinct in a batch of 64",
                      "of a full random permutation, which has 60.", "an epoch", "first batch"):  # fmt: skip
            assert words in output

    def test_plan_judges_the_order_and_what_it_says_to_set_is_good_then(self):
        job = ("--nodes", "4", "--ranks-per-node", "4", "--batch-size", "64")
        judgement = figures(*job)["judgement"]
        assert (judgement["word"], judgement["num_nodes"], judgement["global_batch"]) == ("fair", 4, 1024)
        better = judgement["better"]
        assert (better["lanes"], better["distinct_share"] >= 0.9) == (8, True)
        followed = figures(*job, "--lanes", "8", "--resident-shards", str(better["resident_shards"]))
        assert (followed["judgement"]["word"], followed["judgement"]["better"]) == ("good", None)
        # Counted, and not by the closed form that the word comes from.
        assert followed["ratio_to_permutation"]["middle"] > 0.9 > figures(*job)["ratio_to_permutation"]["middle"]
        declared = figures(*job, "--declare")
        assert declared["resident_shards"] == better["resident_shards"]
        assert declared["judgement"] == followed["judgement"]

    def test_plan_for_nodes_that_the_lanes_are_no_multiple_of_says_what_they_fetch_and_which_lanes_fit(self):
        output = run("--nodes", "3", "--batch-size", "8")
        assert "each of 3 nodes fetches 3.4 times its share, as lanes=8 is no multiple of 3" not in output
        assert "each of 3 nodes fetches 3.0 times its share, as lanes=8 is no multiple of 3. OrderOptions(" in output
        assert "which is lanes=9, " in output
        assert "It is another order: states saved under this one do not fit it.\n" in output
        assert (
            "times its share" not in run("--nodes", "3", "--batch-size", "8", "--declare").rpartition("shuffle good")[2]
        )

    def test_plan_of_a_declared_job_is_bounded_by_its_bytes_and_says_so(self):
        job = ("--batch-size", "1024", "--declare")
        assert figures(*job)["resident_shards"] > 32
        bounded = figures(*job, "--resident-bytes", "32MB")
        assert bounded["resident_shards"] == 32
        assert 'resident_bytes="' not in str(bounded["judgement"]["advice"])  # 8 GiB are the default, and enough
        assert bounded["judgement"]["better"]["resident_shards"] > 32

    @pytest.mark.parametrize("budget", ["0%", "-1%", "x%", "nan%", "much"])
    def test_budget_that_is_none_is_refused(self, budget):
        with pytest.raises(OptionError, match=r"--budget"):
            run("--budget", budget)

    def test_batch_larger_than_the_data_is_refused(self):
        with pytest.raises(OptionError, match="an epoch has 27500"):
            run("--batch-size", "27501")

    def test_plan_by_blocks_counts_its_batches_and_names_its_blocks(self):
        found = figures("--by", "blocks", "--block-steps", "10", "--pool-blocks", "96")
        assert [found[name] for name in ("by", "block_steps", "pool_blocks")] == ["blocks", 10, 96]
        # 12 blocks a lane, and one more as 8 windows of each may lie in two steps of 10.
        assert found["open_blocks"] == 104
        assert found["judgement"]["now"]["pool_blocks"] == 96
        assert min(found["distinct"]) > 0.9 * found["distinct_permuted"]
        text = run("--pool-blocks", "96")
        assert "96 blocks of 32 steps at a time" in text
        assert "blocks at once" in text

    def test_plan_by_windows_names_no_blocks(self):
        found = figures()
        assert found["by"] == "windows"
        assert found["block_steps"] is found["pool_blocks"] is found["open_blocks"] is None
        assert "block" not in run()

    def test_plan_by_blocks_tells_the_pool_and_counts_episodes_and_blocks(self):
        found = figures("--by", "blocks")
        assert (found["by"], found["block_steps"], found["pool_blocks"]) == ("blocks", 32, 128)
        # 16 blocks of each of 8 lanes, and those that four batches of 64 windows reach into.
        assert 128 < found["pool_slots"] < 170
        frame = 480 * 640 * 3
        assert 0 <= found["pool_bytes"] - found["pool_slots"] * 32 * frame < 1 << 20
        assert all(40 < distinct <= 64 for distinct in found["distinct_blocks"])
        assert all(
            0.8 * blocks < distinct
            for blocks, distinct in zip(found["distinct_blocks"], found["distinct"], strict=True)
        )
        assert 0.9 < found["judgement"]["now"]["distinct_share"] < 1.2
        output = run("--by", "blocks")
        for words in ("8 lanes, resident shards K = 26, 128 blocks of 32 steps at a time",
                      f"up to {found['pool_slots']} blocks at once", "GiB of decoded frames on a node",
                      "distinct in a batch: first, middle, last"):  # fmt: skip
            assert words in output

    def test_plan_by_windows_tells_of_no_pool(self):
        found = figures()
        assert (found["by"], found["pool_bytes"], found["distinct_blocks"]) == ("windows", None, None)
        assert "pool" not in run()

    @pytest.mark.parametrize(
        ("more", "steps", "frame"),
        [
            (("--obs=-1:1",), 33, 480 * 640 * 3),
            (("--image-size", "240", "320"), 32, 240 * 320 * 3),
            (("--feature", TOP, "--block-steps", "8", "--obs=-3:1"), 11, 480 * 640 * 3),
        ],
    )
    def test_pool_holds_what_the_windows_of_a_block_show_at_the_size_that_is_streamed(self, more, steps, frame):
        found = figures("--by", "blocks", *more)
        assert 0 <= found["pool_bytes"] - found["pool_slots"] * steps * frame < 1 << 21

    def test_pool_without_a_camera_takes_nothing(self):
        assert figures("--by", "blocks", "--feature", "action")["pool_bytes"] is None
        assert "no camera must be decoded" in run("--by", "blocks", "--feature", "action")

    def test_pool_of_each_of_several_nodes_is_a_share(self):
        one, two = (figures("--by", "blocks", "--nodes", nodes, "--batch-size", "32") for nodes in ("1", "2"))
        assert 0.4 < two["pool_slots"] / one["pool_slots"] < 0.7

    @pytest.mark.parametrize("budget", ["2GiB", "1GiB", "900MiB"])
    def test_plan_by_blocks_that_a_budget_cannot_hold_says_which_pool_would_fit(self, budget):
        asked = ("--by", "blocks", "--budget", budget, "--resident-shards", "26")
        advice = figures(*asked)["advice"]
        assert "of decoded frames, beside" in advice
        step = {
            name: number
            for name, number in re.findall(r"(lanes|resident_shards|pool_blocks)=(\d+)", advice.split("Use ")[1])
        }
        followed = [
            *asked[:4],
            "--resident-shards",
            step.get("resident_shards", "26"),
            "--pool-blocks",
            step["pool_blocks"],
        ]
        found = figures(*followed, "--lanes", step.get("lanes", "8"))
        assert found["advice"] is None
        assert found["pool_bytes"] + found["open_bytes"] <= found["budget_bytes"]

    def test_plan_by_blocks_for_a_budget_takes_the_shards_that_fit_beside_the_pool(self):
        found = figures("--by", "blocks", "--lanes", "2", "--pool-blocks", "8", "--budget", "900MiB")
        assert found["advice"] is None
        assert found["pool_bytes"] + found["open_bytes"] <= found["budget_bytes"]
        assert found["resident_shards"] > figures("--by", "blocks", "--lanes", "2")["resident_shards"]

    def test_plan_by_blocks_for_a_budget_that_holds_no_pool_says_what_does(self):
        asked = ("--by", "blocks", "--budget", "400MiB")
        assert figures(*asked)["advice"].endswith(
            "No order by blocks fits: use smaller block_steps, by='windows', or a larger budget."
        )
        assert figures("--by", "windows", "--budget", "400MiB")["advice"] is None
        smaller = figures(*asked, "--block-steps", "8", "--lanes", "2", "--pool-blocks", "4")
        assert smaller["advice"] is None

    def test_plan_of_video_is_by_blocks_of_whole_groups_unless_said_otherwise(self, sixty_shards):
        video = Feature(TOP, "frames", "uint8", (480, 640, 3), "h264", group_steps=30)
        sixty_shards.features = {TOP: video}
        assert (figures()["by"], figures()["block_steps"]) == ("blocks", 30)
        assert figures("--by", "windows")["by"] == "windows"
        sixty_shards.features = {TOP: replace(video, group_steps=2)}
        assert (figures()["by"], figures()["block_steps"]) == ("blocks", 2)
        sixty_shards.features = {TOP: replace(video, group_steps=2, shape=(24, 32, 3))}  # few enough to be kept
        assert figures()["by"] == "windows"
        sixty_shards.features = {TOP: replace(video, group_steps=1)}
        assert figures()["by"] == "windows"
