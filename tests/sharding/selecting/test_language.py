"""The language of selections: what each form means, and where errors point."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epistream.errors import EpistreamError, OptionError, SourceError
from epistream.sharding.selecting.columns import Column, flat_attributes
from epistream.sharding.selecting.facts import KnownFacts
from epistream.sharding.selecting.selection import parse_selection

LENGTHS = [50, 80, 120, 10, 99, 60]
SPLITS = ["train", "train", "val", "train", "val", "train"]
SOURCES = ["day1/ep_0.hdf5", "day1/ep_1.hdf5", "day2/ep_0.hdf5", "day2/ep_1.hdf5", "day2/ep_2.hdf5", "cup.hdf5"]
# The fourth has no instruction, the fifth two.
TASKS = [["lift the cup"], ["lift the cube"], ["place [x]"], [], ["lift the cup", "wait"], ["wait"]]
ATTRIBUTES = {
    "success": [True, False, True, None, True, False],
    "operator": ["ann", "bob", "ann", None, None, "bob"],
    "env.seed": [3, 1, 4, 1, 5, 9],
    "odd name": [0.5, None, None, None, None, 2],
    "length": ["short", None, None, None, None, None],
}


@pytest.fixture(scope="module")
def facts():
    texts = list(dict.fromkeys(task for mine in TASKS for task in mine))
    offsets = np.cumsum([0, *map(len, TASKS)])
    columns = {
        "length": Column.of_integers(np.array(LENGTHS)),
        "split": Column.of(SPLITS),
        "source": Column.of(SOURCES),
        "path": Column.of(["/"] * 6),
        "key": Column.of([f"ep-{number:09d}" for number in range(6)]),
        "task": Column.of_tasks(texts, offsets, np.array([texts.index(task) for mine in TASKS for task in mine])),
    }
    attributes = {name: Column.of(values) for name, values in ATTRIBUTES.items()}
    return KnownFacts("data/", 6, columns, attributes)


def chosen(facts, value):
    return np.flatnonzero(parse_selection(value).rows(facts)).tolist()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("3", [3]),
        ("-1", [5]),
        ("0:2", [0, 1]),
        (":", [0, 1, 2, 3, 4, 5]),
        ("-2:", [4, 5]),
        ("4:100", [4, 5]),
        ("::2", [0, 2, 4]),
        ("0:2, 3, 5:6", [0, 1, 3, 5]),
        ("0:2,\n3,  # the bad day\n", [0, 1, 3]),
        (2, [2]),
        (np.int32(-2), [4]),
        ([0, -1, 0], [0, 5]),
        ((1,), [1]),
        ({1, 2}, [1, 2]),
        (range(1, 6, 2), [1, 3, 5]),
        (np.array([4, 0], np.uint8), [0, 4]),
        (np.array([True, False, False, False, False, True]), [0, 5]),
        ([True, False, False, False, False, False], [0]),
        ("index >= 4", [4, 5]),
        ("length == 80", [1]),
        ("50 <= length < 99", [0, 1, 5]),
        ("99 > length", [0, 1, 3, 5]),
        ("length in [10, 120]", [2, 3]),
        ("length not in (10, 120)", [0, 1, 4, 5]),
        ("split == 'val'", [2, 4]),
        ("split != 'val'", [0, 1, 3, 5]),
        ("key == 'ep-000000002'", [2]),
        ("source == 'day1/*'", [0, 1]),
        ("source == 'ep_1.hdf5'", [1, 3]),
        ("source == 'day2/ep_1.hdf5'", [3]),
        ("source == 'y2/ep_1.hdf5' or index == 0", [0]),
        ("source == 'ep_?.hdf5'", [0, 1, 2, 3, 4]),
        ("'day2' in source", [2, 3, 4]),
        ("task == 'lift the cup'", [0, 4]),
        ("task == 'lift*'", [0, 1, 4]),
        ("task != 'lift the cup'", [1, 2, 3, 5]),
        ("'cup' in task", [0, 4]),
        ("'[' in task", [2]),
        ("'cup' not in task", [1, 2, 3, 5]),
        ("task == ''", [3]),
        ("task in ['wait', 'place*']", [2, 4, 5]),
        ("success", [0, 2, 4]),
        ("not success", [1, 3, 5]),
        ("success == False", [1, 5]),
        ("success == 1", [0, 2, 4]),
        ("success and length > 100", [2]),
        ("success or length == 10, 5", [0, 2, 3, 4, 5]),
        ("operator == 'ann'", [0, 2]),
        ("operator != 'ann'", [1, 5]),
        ("not operator == 'ann'", [1, 3, 4, 5]),
        ("operator > 'ann'", [1, 5]),
        ("env.seed <= 3", [0, 1, 3]),
        ("env.seed == -3 or env.seed == +9", [5]),
        ("attribute('odd name') < 1", [0]),
        ("attribute('length') == 'short'", [0]),
        ("(success or split == 'val') and not (index == 0)", [2, 4]),
        ("True and index == 1", [1]),
    ],
)
def test_selection_of_any_form_means_these_episodes(facts, value, wanted):
    assert chosen(facts, value) == wanted
    assert chosen(facts, pickle.loads(pickle.dumps(parse_selection(value)))) == wanted


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lenght > 5", "'lenght' of 'lenght > 5', character 1: no episode of data/ has .*Did you mean 'length'"),
        ("succes", "'succes': .*Did you mean 'success'.*Attributes are env.seed, length, odd name, operator, success;"),
        ("index > 0 and seed == 1", "'seed' of .*, character 15: .*Did you mean 'env.seed'"),
        ("é == 1 and ???", r"'\?\?\?' of .*, character 12: it cannot be read from here"),
        ("length >", "it ends too early"),
        ("success and (length", "it ends too early"),
        ("0)or(1", r"'\)or\(1' of .*character 2"),
        ("0] + [1", "brackets that do not match"),
        ("0, ] , _[ 3", "brackets that do not match"),
        ("", "nothing, wanted episodes"),
        ("1 and success", "'1' of .*a number beside 'and'"),
        ("success and 0:100", "'success and 0' of .*wanted whole numbers about ':'.*0 <= index < 100"),
        ("::-1", "in steps of -1"),
        ("0:2:0", "in steps of 0"),
        ("6", "no episode 6 of data/, wanted 0 to 5, or -6 to -1"),
        ("1, -7, 2", "'1, -7, 2': no episode -7"),
        ("999999999999999999999", "wanted the position of an episode"),
        ("length == '80'", "length holds numbers, such as 10, wanted a number or truth value without quotes"),
        ("split == 3", "split holds texts, such as 'train', wanted a text in quotes"),
        ("operator", "texts, such as 'ann', wanted a truth value. Compare it: operator == "),
        ("task", "wanted a truth value. Compare it: task == "),
        ("'lift'", "a text alone, wanted what has it: source == 'lift'"),
        ("task == lift", "wanted a name on one side"),
        ("1 < 2", "wanted a name on one side"),
        ("task in 'lift'", "the text first: 'a' in name"),
        ("3 in index", "wanted a text in quotes that is in another"),
        ("task in []", "an empty list"),
        ("split is None", "wanted a comparison by =="),
        ("success & (index == 1)", "write 'and' and 'or' in place of '&'"),
        ("length + 1 == 5", "wanted a name on one side"),
        ("length == 1 + 1", "no part of a selection"),
        ("length == 1j", "no part of a selection"),
        ("open('x')", r"open\('x'\).: no function of a selection, which are attribute\('NAME'\) and listed\('FILE'\)"),
        ("attribute(length)", "wanted one text in quotes"),
        ("__import__('os').system('true')", "no function of a selection"),
        ("(lambda: 1)()", "no function of a selection"),
        ("[i for i in index]", "no part of a selection"),
        ("(x := 3)", "no part of a selection"),
        ("f'{index}'", "no part of a selection"),
        ("x[0]", "no part of a selection"),
        ("not " * 200 + "success", "nested more than 100 times"),
        ("(" * 5000 + "success" + ")" * 5000, "it cannot be read"),
        ("9" * 5000, "cannot be read|position of an episode"),
        ("success\0", "it cannot be read"),
        ("x" * (1 << 20 | 1), "1,048,577 characters"),
        ("length > 1000", "data/: episodes 'length > 1000': none of 6 episodes"),
        ("False", "none of 6 episodes"),
        ("@", "'@' without a file"),
    ],
)
def test_selection_that_cannot_be_is_refused_with_its_place(facts, text, told):
    with pytest.raises(OptionError, match=told) as caught:
        chosen(facts, text)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "value", [True, 0.5, [0.5], [0, True], ["a"], [], np.zeros((2, 2), int), {"a": 1}, [None], b"0"]
)
def test_value_of_another_kind_is_refused_with_what_is_wanted(value):
    with pytest.raises(OptionError, match="episodes: "):
        parse_selection(value)


def test_mask_of_another_length_is_refused_with_both_lengths(facts):
    with pytest.raises(OptionError, match="5 truth values, wanted one for each of the 6 episodes of data/"):
        chosen(facts, np.ones(5, bool))


def test_file_that_is_not_there_is_told_by_its_name(tmp_path):
    with pytest.raises(SourceError, match=r"gone\.json: no such file"):
        parse_selection(f"listed('{tmp_path}/gone.json')")


def test_selection_asks_only_for_what_it_names():
    assert parse_selection("0:100, length > 3").names == {"length"}
    assert parse_selection("not (success or env.seed == 3) and 'a' in task").names == {"@success", "@env.seed", "task"}
    assert parse_selection("attribute('length') == 1").names == {"@length"}
    assert parse_selection([1, 2]).names == set()


def test_identity_is_equal_for_equal_values_only(facts):
    assert parse_selection(" 0:3 ").identity == "0:3"
    assert parse_selection([0, 2]) == parse_selection((0, 2)) == parse_selection(np.array([0, 2]))
    assert parse_selection(range(100)) != parse_selection([*range(99), 100])
    assert parse_selection([True, False]) != parse_selection([False, True])
    assert parse_selection(parse_selection("0")) == parse_selection("0")


def test_attributes_in_maps_are_named_with_dots_and_others_left_out():
    given = {"a": {"b": {"c": 1}, "d": [1]}, "text": "x" * 201, "none": None, "flag": False}
    assert flat_attributes(given) == {"flag": False, "a.b.c": 1}


LEAVES = st.sampled_from(
    [
        "success",
        "length > 60",
        "10 < length <= 99",
        "split == 'val'",
        "env.seed in [1, 9]",
        "index != 2",
        "'cu' in task",
    ]
)
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not {}".format, inner),
    ),
    max_leaves=8,
)


class Env:
    def __init__(self, seed):
        self.seed = seed


@given(EXPRESSIONS)
@settings(max_examples=60, deadline=None)
def test_expression_means_what_python_says_of_each_episode(facts, text):
    names = [
        {
            "success": bool(ATTRIBUTES["success"][number]),
            "length": LENGTHS[number],
            "split": SPLITS[number],
            "env": Env(ATTRIBUTES["env.seed"][number]),
            "index": number,
            "task": " ".join(TASKS[number]),
        }
        for number in range(6)
    ]
    wanted = [number for number in range(6) if eval(text, {}, names[number])]
    found = parse_selection(text).term.rows(facts)
    assert np.flatnonzero(found).tolist() == wanted


@given(st.text(alphabet="0123456789:,()[]'\"@=<>!. \n#-andotrsuceligh", max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_selection_or_an_error_of_ours(facts, text):
    try:
        rows = parse_selection(text).rows(facts)
    except EpistreamError:
        return
    assert rows.dtype == np.bool_
    assert rows.any()
