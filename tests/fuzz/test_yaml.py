"""YAML of anybody: layouts, step mappings and configurations are read, or refused by name, at once."""

import string

import pytest
import yaml
from fuzzing import damaged, fuzzed, only_named_errors, other_values
from hypothesis import given
from hypothesis import strategies as st

import epistream as es
from epistream.errors import OptionError
from epistream.sharding.layouts.layout_file import read_layout_file
from epistream.sharding.tar.step_mapping import read_step_mapping

LAYOUT = {
    "name": "mine",
    "needs": ["joint/vector", "observation/*/rgb"],
    "episodes": "data/*",
    "fps": 30,
    "tasks": ["instruction"],
    "features": [
        {"path": "observation/*/rgb", "camera": "*", "jpeg_channels": "bgr"},
        {"path": "joint/vector", "name": "action", "shift": 1},
    ],
}
STEPS = {"key": "{episode}-{step}", "fields": {"action": "action.npy", "observation.images.top": "top.jpg"}}
CONFIG = {"preset": "small", "stream": {"batch_size": 4}, "loader": {"num_workers": 0}}
READERS = {
    "layout": (read_layout_file, LAYOUT),
    "steps": (read_step_mapping, STEPS),
    "config": (es.load_config, CONFIG),
}
# What YAML is made of: most drawn texts are nearly documents.
TEXTS = st.text(st.sampled_from("[]{}:,-&*!|>#?%@\"'\\\n\t ~<=." + string.ascii_letters[:6] + "019"), max_size=200)


@pytest.mark.parametrize("kind", READERS)
@fuzzed
@given(data=st.data())
def test_any_yaml_is_read_or_named(kind, data, tmp_path):
    reader, sound = READERS[kind]
    text = yaml.safe_dump(sound)
    path = tmp_path / "given.yaml"
    what = data.draw(st.sampled_from(["damaged", "other", "any", "bytes"]))
    if what == "damaged":
        path.write_bytes(data.draw(damaged(text.encode())))
    elif what == "other":
        path.write_text(yaml.safe_dump(data.draw(other_values(sound))), errors="surrogatepass")
    elif what == "any":
        path.write_text(data.draw(TEXTS))
    else:
        path.write_bytes(data.draw(st.binary(max_size=60)))
    with only_named_errors():
        reader(path)


BOMBS = {
    "deep list": "name: " + "[" * 100_000,
    "deep map": "name: " + "{a: " * 20_000,
    "deep lines": "".join(f"{'  ' * depth}a:\n" for depth in range(1500)),
    "aliases": "".join(
        f"{chr(97 + n)}: &{chr(97 + n)} [{','.join(['x' if n == 0 else '*' + chr(96 + n)] * 9)}]\n" for n in range(12)
    )
    + "name: *l\nfeatures: *l\n",
    "alias of itself": "name: &a [*a]\nfeatures: *a\n",
    "merges": "".join(
        f"m{n}: &m{n} {{{'' if n == 0 else f'<<: [*m{n - 1}, *m{n - 1}], '}k{n}: 1}}\n" for n in range(60)
    ),
    "long number": "fps: " + "9" * 100_000,
    "python": "name: !!python/object/apply:os.system [true]",
    "large": "name: " + "x" * (64 << 20),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("kind", READERS)
def test_yaml_that_would_take_for_ever_is_refused(kind, bomb, tmp_path):
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS[bomb])
    with only_named_errors(), pytest.raises(OptionError):
        READERS[kind][0](path)
