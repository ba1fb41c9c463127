"""Each check finds the fault that is planted for it, in the episodes that have it, and nothing in healthy ones."""

import copy

import pytest
from ailing.episodes import healthy, write
from ailing.faults import FAULTS

import epistream as es
from epistream.loader.doctor.checks.registry import CHECKS

# Faults that cannot be planted without another: a copy over splits is a copy, a frozen state stays the same.
ALSO = {
    "split-leak": {"duplicate-episode"},
}
ELSEWHERE = {"unreadable-file", "unlike-file", "unreadable-episode", "few-valid-steps", "statistics", "small-split"}
ELSEWHERE |= {"undecodable-frame", "picture-shape"}


@pytest.fixture(scope="module")
def well():
    return healthy()


def test_healthy_episodes_have_no_finding(well, tmp_path):
    found = es.doctor(str(write(well, tmp_path / "demos.hdf5")))
    assert [(one.code, one.place) for one in found.findings] == []
    assert found.cameras == ("observation.images.top", "observation.images.wrist")
    assert (found.num_episodes, found.num_steps) == (12, 720)


@pytest.mark.parametrize("code", FAULTS)
def test_planted_fault_is_found_where_it_is(code, well, tmp_path):
    episodes = copy.deepcopy(well)
    ill = FAULTS[code](episodes)
    needs_frames = next(check.needs_frames for check in CHECKS if check.code == code)
    found = es.doctor(str(write(episodes, tmp_path / "demos.hdf5")), frames=needs_frames)
    places = [one.place.episode for one in found.findings if one.code == code]
    assert places, sorted({one.code for one in found.findings})
    assert (set(places) & {0} if code == "clipped" else set(places)) == (ill or {None})
    others = {one.code for one in found.at_least("error")} - {code, *ALSO.get(code, ())}
    assert others == set()


def test_every_check_has_a_fault_that_is_planted_somewhere():
    assert {check.code for check in CHECKS} == {*FAULTS, *ELSEWHERE}
    assert len(FAULTS) >= 30
