"""What messages advise exists, and is taken by a test: a new command, option or argument in a message wants a row."""

import re
from functools import cache
from pathlib import Path

import pytest
from words.advised import advice, arguments, commands, messages, options_of_commands

HERE = Path(__file__).parent

# Of other programs and libraries, by who has them.
FOREIGN = {
    "Ray": ["--head"],
    "Docker": ["--shm-size", "--memory"],
    "Slurm": ["--mem", "--cpus-per-task"],
    "tar": ["--transform", "--sparse", "--dereference", "--hard-dereference", "--concatenate", "--file"],
    "torch": ["mesh_dim_names="],
    "Accelerate and Transformers": [
        *("use_stateful_dataloader=", "accelerator_config=", "dispatch_batches=", "split_batches=", "data_collator="),
        *("per_device_train_batch_size=", "per_device_eval_batch_size="),
    ],
}
# What looks like advice and is none: the kernel's own text, attributes of files, examples of values, and what the
# history of a dataset calls the edits that were made.
NO_ADVICE = {
    "cache/store/memory.py": ["avg10="],
    "cache/source/remote.py": ["size="],
    "sharding/files/versioned_files.py": ["bytes="],
    "sharding/lerobot_meta/meta_files.py": ["bytes="],
    "sharding/check/layout_marks.py": ["sim="],
    "sharding/layouts/aloha.py": ["sim="],
    "loader/monitoring/monitor.py": ["fetched="],
    "epistream/commands/pack.py": ["cam_high="],
    "epistream/commands/plan.py": ["nodes=", "global_batch="],
    "configs/tuned_yaml.py": ["epistream tune"],
    "sharding/edit/compacting.py": ["--prune"],
    "sharding/edit/history_edits.py": ["--to"],
    "sharding/edit/operations.py": ["--episodes", "--replace", "--split-seed", "--val-fraction"],
}
# Whose advice is taken by tests that stand elsewhere.
ELSEWHERE = {
    "configs/config.py": "tests/commands/test_tune_command.py",
    "epistream/bodies.py": "tests/cache/source",
    "cache/source/ranged.py": "tests/cache/source",
    "epistream/commands/pack.py": "tests/sharding/pack/test_pack_interrupted.py",
    "loader/accelerated.py": "tests/trainers",
    "loader/agreement.py": "tests/trainers",
    "loader/episodic/files.py": "tests/loader/episodic",
    "loader/episodic/sampler.py": "tests/configs",
    "loader/order/launchers.py": "tests/loader/order",
    "loader/order/judgement.py": "tests/loader/order",
    "loader/order_log.py": "tests/loader",
    "loader/monitoring/diagnosis.py": "tests/commands",
    "loader/frames/keeping.py": "tests/loader",
    "loader/workers/pool.py": "tests/loader",
    "sharding/files/storage.py": "tests/sharding/check/test_verify.py",
    "sharding/manifest/dataset_statistics.py": "tests/advice/test_values.py",
    "sharding/manifest/sources.py": "tests/sharding/manifest/test_sources.py",
    "sharding/layouts/reading.py": "tests/loader",
    "epistream/commands/verify.py": "tests/loader/lerobot",
    "loader/exporting/choice.py": "tests/loader/exporting",
    "sharding/lerobot/episode.py": "tests/loader/lerobot",
    "sharding/lerobot/files.py": "tests/loader/lerobot",
    "sharding/lerobot/seen.py": "tests/loader/lerobot",
    "sharding/lerobot_out/export.py": "tests/commands/test_export_command.py",
    "sharding/pack/plan.py": "tests/commands/test_pack_command.py",
    "sharding/tasks/pool_process.py": "tests/sharding/pack/test_pack_interrupted.py",
    "sharding/tar/samples.py": "tests/sharding/tar",
}


def sites():
    """Module, line, text and what it advises."""
    for module, texts in messages().items():
        for line, text in texts:
            tokens = advice(text) - set(NO_ADVICE.get(module, ()))
            if tokens:
                yield module, line, text, tokens - {token for tokens in FOREIGN.values() for token in tokens}


@cache
def taken_here():
    """(module, token) of the tests that name their advice, and the texts of those that do not."""
    pairs, texts = set(), []
    for path in HERE.glob("test_*.py"):
        if path.name == Path(__file__).name:
            continue
        text = path.read_text()
        named = [re.findall(r'"([^"]+)"', words) for words in re.findall(r"@taken\(([^)]*)\)", text)]
        pairs |= {(module, token) for module, *tokens in named for token in tokens}
        if not named:
            texts.append(text)
    return pairs, "\n".join(texts)


def is_used(token, text):
    """Whether a test uses a command, an option or an argument."""
    name = token.removesuffix("=").removeprefix("epistream ")
    if token.startswith("epistream "):
        words = name.split()
        return re.search(r"\W+".join(map(re.escape, words)), text) is not None
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


def test_commands_and_options_that_messages_advise_exist():
    known = options_of_commands()
    every = set().union(*known.values())
    wrong = []
    for module, line, text, tokens in sites():
        named = list(commands(text))
        wrong += [f"{module}:{line}: no command 'epistream {name}'" for name, _ in named if name not in known]
        wrong += [
            f"{module}:{line}: 'epistream {name}' has no {option}"
            for name, options in named
            for option in options
            if option not in known.get(name, every)
        ]
        wrong += [f"{module}:{line}: no {one}" for one in sorted(tokens) if one.startswith("--") and one not in every]
    assert not wrong


def test_arguments_that_messages_advise_exist():
    known = {f"{name}=" for name in arguments()}
    asked = [(m, line, token) for m, line, _, tokens in sites() for token in sorted(tokens) if token.endswith("=")]
    assert len(asked) > 50
    assert not [f"{module}:{line}: nobody takes {token}" for module, line, token in asked if token not in known]


def test_advice_has_a_test_that_takes_it():
    pairs, texts = taken_here()
    missing = set()
    for module, line, _, tokens in sites():
        place = ELSEWHERE.get(module)
        others = texts if place is None else texts + _texts_of(place)
        missing |= {
            f"{module}:{line}: {token}"
            for token in tokens
            if (module, token) not in pairs and not is_used(token, others)
        }
    assert not sorted(missing), "provoke the message in tests/advice, take the step, and name both with @taken"


def test_tests_that_take_advice_name_what_messages_still_say():
    said = {}
    for module, _, _, tokens in sites():
        said.setdefault(module, set()).update(tokens)
    pairs, _ = taken_here()
    assert not sorted((module, token) for module, token in pairs if token not in said.get(module, ()))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Run 'epistream cache ls --json'.", {"epistream cache ls", "--json"}),
        ("Write it again: epistream index {} --overwrite", {"epistream index", "--overwrite"}),
        ("Use OrderOptions(lanes={}), or shuffle=False.", {"lanes=", "shuffle="}),
        ("a == b, x-y=3, $HOME and 3 epistream processes", {"epistream processes"}),
    ],
)
def test_advice_is_found_in_texts(text, found):
    assert advice(text) == found


@cache
def _texts_of(place):
    path = HERE.parents[1] / place
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files, place
    return "\n".join(file.read_text() for file in files)
