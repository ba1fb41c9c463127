"""Attributes of episodes come from the records of a dataset, where there are any, and no shard is read for them."""

from hdf5_files import robomimic

import epistream as es
from epistream.sharding.dataset_facts import facts_of


def test_attributes_are_those_of_the_records_without_a_look_at_the_shards(tmp_path):
    lengths = {"demo_1": 4, "demo_2": 3}
    es.pack(robomimic(tmp_path / "a.hdf5", lengths), tmp_path / "out")
    dataset = es.open_dataset(tmp_path / "out")
    wanted = [dataset.episode_records.attributes(row) for row in range(2)]
    assert wanted[0]
    (tmp_path / "out" / "shard-000000.tar").unlink()
    facts = facts_of(es.open_dataset(tmp_path / "out"))
    assert sorted(facts.attribute_names()) == sorted({name for row in wanted for name in row})
