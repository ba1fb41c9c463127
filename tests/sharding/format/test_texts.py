"""Texts in two arrays: whatever the characters, made only when somebody looks."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistream.errors import FormatError
from epistream.sharding.format.texts import Texts

WORDS = ["lift", "", "積む\n🙂", "lift", "a\0b"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6))
def test_texts_come_back_whatever_their_characters(words):
    texts = Texts.of(words, "x")
    data, offsets = texts.arrays
    again = Texts(data, offsets, "x", "")
    assert len(again) == len(words)
    assert list(again) == words
    assert [again[number] for number in range(len(words))] == words
    assert again[1:] == tuple(words[1:])
    assert offsets.tolist() == [sum(len(word.encode()) for word in words[:n]) for n in range(len(words) + 1)]


def test_texts_behave_as_the_tuple_of_them():
    texts = Texts.of(WORDS, "x")
    assert texts == tuple(WORDS)
    assert texts == Texts.of(WORDS, "y")
    assert texts != (*WORDS[:-1], "a b")
    assert texts != tuple(WORDS[:-1])
    assert Texts.of(["a"], "x") != "a"
    assert texts[-1] == "a\0b"
    assert texts[np.int64(2)] == "積む\n🙂"
    assert texts.index("") == 1
    assert hash(texts) == hash(tuple(WORDS))
    assert repr(texts) == repr(tuple(WORDS))
    assert repr(Texts.of(["a"] * 1000 + ["b"], "x")) == "<1,001 texts: 'a' to 'b'>"
    with pytest.raises(IndexError):
        texts[5]


def test_texts_pickle_as_two_arrays_however_many_there_are():
    texts = Texts.of([f"task {number}" for number in range(20_000)], "x")
    packed = pickle.dumps(texts, 5)
    assert pickle.loads(packed) == texts
    data, offsets = texts.arrays
    assert len(packed) < data.nbytes + offsets.nbytes + 1000


@pytest.mark.parametrize("offsets", [[], [0], [0, 2], [1, 3], [0, 2, 1, 3], [0, 4], [-1, 3]])
def test_texts_with_offsets_that_do_not_fit_are_refused(offsets):
    with pytest.raises(FormatError, match=r"^x\.tables: offsets of texts that do not rise, wanted 0 to 3\. Again\.$"):
        Texts(np.frombuffer(b"abc", np.uint8), np.array(offsets, np.int64), "x.tables", "Again.")


def test_text_that_is_no_utf8_is_an_error_of_who_looks_at_it():
    texts = Texts(np.frombuffer(b"ab\xff", np.uint8), np.array([0, 2, 3]), "x.tables", "Again.")
    assert texts[0] == "ab"
    for look in (lambda: texts[1], lambda: list(texts)):
        with pytest.raises(FormatError, match=r"^x\.tables: b'\\xff', wanted a text in UTF-8 \(.*\)\. Again\.$"):
            look()


def test_text_that_utf8_cannot_hold_is_refused_by_its_name():
    with pytest.raises(
        FormatError, match=r"x: 'day_\\udcff\.h5', wanted text that UTF-8 can hold\. Rename the file or correct"
    ):
        Texts.of(["a", "day_\udcff.h5"], "x")
