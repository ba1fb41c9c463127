"""What a stream of a made-up LeRobot data set gives, compared with what was put in."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from robots.lerobot_sets import shown
from video.clips import number_of

import epistream as es


def stream_of(root, **options):
    """Of single steps in storage order, with the last batch filled up, unless told otherwise."""
    return es.EpisodeStream(str(root), **{"batch_size": 4, "shuffle": False, "remainder": "pad", **options})


def steps_seen(batches, spec):
    """How often each (episode, step) comes, each batch compared with the data set; repeats are compared too."""
    seen = Counter()
    for batch in batches:
        places = zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True)
        for row, (episode, step) in enumerate(places):
            if not batch["is_repeat"][row]:
                seen[episode, step] += 1
            for key in set(spec.features) & set(batch):
                _compare(np.asarray(batch[key][row])[0], spec, key, episode, step)
    return seen


def _compare(found, spec, key, episode, step):
    if spec.features[key]["dtype"] in ("video", "image"):
        assert number_of(found) == shown(spec.cameras.index(key), episode, step)
        return
    wanted = np.asarray(spec.values(key, episode))[step]
    wanted = wanted.astype(np.float32) if wanted.dtype == np.float64 else wanted
    np.testing.assert_array_equal(found.reshape(-1), wanted.reshape(-1))


def all_steps(spec, *, without=()):
    """Each step once."""
    episodes = enumerate(spec.lengths)
    return {(one, step): 1 for one, length in episodes if one not in without for step in range(length)}


def rewrite(path, change):
    """A Parquet file with what `change` makes of its table, as a new file."""
    table = pq.read_table(path)
    path.unlink()
    pq.write_table(change(table), path)


def of_episode(number, name, change):
    """A change of one column in the rows of one episode, value by value."""

    def apply(table):
        values = zip(table.column(name).to_pylist(), table.column("episode_index").to_pylist(), strict=True)
        changed = [change(value) if episode == number else value for value, episode in values]
        field = table.schema.field(name)
        return table.set_column(table.column_names.index(name), name, pa.array(changed, field.type))

    return apply


def change_info(root, **changes):
    """``info.json`` with other values."""
    path = root / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_file(path, data):
    """As a download does: another file of the same name."""
    spare = path.with_name(f"{path.name}.new")
    spare.write_bytes(data)
    spare.replace(path)
