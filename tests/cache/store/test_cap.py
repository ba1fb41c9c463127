"""The byte cap that the users of a directory agree on."""

import logging
from pathlib import Path

import pytest
from cache_actors import SIZE, open_test_store

from epistream.cache.store.markers import mark_kept


def test_cap_of_the_first_user_is_in_force_and_a_differing_wish_is_told(
    cache_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_test_store(cache_path, cap=2 * SIZE)
    with caplog.at_level(logging.WARNING):
        second = open_test_store(cache_path, cap=5 * SIZE)
    assert f"budget of {2 * SIZE} bytes is in force, wanted {5 * SIZE}" in caplog.text
    assert first.budget().bytes == second.budget().bytes == 2 * SIZE


def test_cap_of_a_sole_user_replaces_that_of_the_dead(cache_path: Path) -> None:
    first = open_test_store(cache_path, cap=2 * SIZE)
    mark_kept(first.directory.dir_fd)
    first.directory.leave()
    assert open_test_store(cache_path).budget().bytes == 2 * SIZE, "no wish leaves it as it is"
    assert open_test_store(cache_path, cap=3 * SIZE).budget().bytes == 2 * SIZE


def test_cap_of_a_sole_user_with_a_wish_replaces_it(cache_path: Path) -> None:
    first = open_test_store(cache_path, cap=2 * SIZE)
    mark_kept(first.directory.dir_fd)
    first.directory.leave()
    assert open_test_store(cache_path, cap=3 * SIZE).budget().bytes == 3 * SIZE


def test_cap_in_torn_text_is_replaced(cache_path: Path) -> None:
    first = open_test_store(cache_path, cap=2 * SIZE)
    (cache_path / ".budget").write_text("12 MB?")
    assert open_test_store(cache_path, cap=3 * SIZE).budget().bytes == 3 * SIZE
    assert first.budget().bytes == 3 * SIZE
