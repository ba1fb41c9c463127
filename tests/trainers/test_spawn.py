"""torch.multiprocessing, spawn and fork, 2 ranks: which windows a stream gives, whenever it is made."""

import json
from itertools import product

import pytest
from launching import NUM_EPOCHS, PROGRAMS, Start, launch

METHODS = ("spawn", "fork")
FOLLOWS = ("after", "before", "counted-before", "iterated-before", "by-the-parent", "by-the-parent-stock")


@pytest.fixture(scope="module")
def notes(made_grid, tmp_path_factory):
    """What each rank was given and warned of, by way and rank."""
    out = tmp_path_factory.mktemp("spawned")
    start = Start(str(made_grid), str(out), str(out / "cache"), 2, 1, NUM_EPOCHS)
    ended = launch(PROGRAMS / "spawned.py", start, under_torchrun=False)
    assert ended.status == 0, ended.printed
    made = (*FOLLOWS, "by-hand", "untold", "alone")
    return {
        (method, way): [json.loads((out / f"{method}-{way}-{rank}.json").read_text()) for rank in range(2)]
        for method, way in product(METHODS, made)
    }


def warns_of_rank(note) -> bool:
    return any("tells its rank" in told for told in note["warnings"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("made", FOLLOWS)
def test_stream_made_anywhere_follows_the_process_group(method, made, notes, reference):
    for rank, note in enumerate(notes[method, made]):
        assert note["windows"] == reference(2, 1)[rank], f"rank {rank}"
        assert warns_of_rank(note) == (made == "iterated-before")


@pytest.mark.parametrize("method", METHODS)
def test_world_given_by_hand_stays(method, notes, reference):
    for rank, note in enumerate(notes[method, "by-hand"]):
        assert note["windows"] == reference(2, 2)[1 - rank]
        assert not warns_of_rank(note)


@pytest.mark.parametrize("method", METHODS)
def test_process_of_several_that_nobody_told_its_rank_warns(method, notes, reference):
    for note in notes[method, "untold"]:
        assert note["windows"] == reference(1, 1)[0]
        assert "world=World.of(rank, size)" in next(told for told in note["warnings"] if "tells its rank" in told)


@pytest.mark.parametrize("method", METHODS)
def test_process_that_says_that_it_is_alone_is_not_warned(method, notes, reference):
    for note in notes[method, "alone"]:
        assert note["windows"] == reference(1, 1)[0]
        assert not warns_of_rank(note)
