"""What a dataset was stays open: streams that run, states that resume, fingerprints, and undoing."""

from dataclasses import replace
from pathlib import Path

import pytest
from editing.small import STATE, copied, faults, numbers, payload, seen, whole

import epistream as es
from epistream.errors import EditError, SourceError, StateError
from epistream.sharding.edit.pruning import prune
from epistream.sharding.files import storage
from epistream.sharding.manifest import manifest_file
from epistream.sharding.manifest.history import History
from epistream.sharding.manifest.manifest_writing import manifest_files


def test_stream_that_runs_while_edits_happen_is_undisturbed_and_resumes_as_it_was(url, more_files):
    options = {"batch_size": 4, "shuffle": True, "seed": 3, "split": None, "features": [STATE], "cache": "off"}
    before = es.open_dataset(url).fingerprint
    wanted = [batch[STATE][:, 0, :2].tolist() for batch in es.EpisodeStream(url, **options)]
    loader = es.StreamingLoader(es.EpisodeStream(url, **options), num_workers=2)
    batches, state = iter(loader), None
    found = []
    for number, batch in enumerate(batches):
        found.append(batch[STATE][:, 0, :2].tolist())
        if number == 1:
            es.edit.remove(url, "0:5")
            es.edit.rename(url, {STATE: "pose"})
        if number == 3:
            es.edit.add(url, more_files)
            es.edit.compact(url)
            state = loader.state_dict()
    assert found == wanted
    resumed = es.StreamingLoader(es.EpisodeStream(f"{url}@{before}", **options), num_workers=0)
    resumed.load_state_dict(state)
    assert [batch[STATE][:, 0, :2].tolist() for batch in resumed] == wanted[4:]
    edited = es.StreamingLoader(es.EpisodeStream(url, **{**options, "features": ["pose"]}), num_workers=0)
    message = rf"dataset is '{before}', this stream has .* edited since, stream URL@{before[:8]}\."
    with pytest.raises(StateError, match=message):
        edited.load_state_dict(state)


def test_every_fingerprint_of_the_history_opens_whole_and_by_its_first_digits(url):
    states = [(es.open_dataset(url).fingerprint, whole(*range(10)))]
    for selection, left in (("0", range(1, 10)), ("0:3", range(4, 10)), ("-2:", range(4, 8))):
        states.append((es.edit.remove(url, selection).fingerprint, whole(*left)))
    for fingerprint, wanted in states:
        assert numbers(f"{url}@{fingerprint}") == wanted
        assert numbers(f"{url}/@{fingerprint[:8]}") == wanted
        assert faults(f"{url}@{fingerprint[:12]}") == []
    assert [edit.fingerprint for edit in es.edit.log(url)] == [fingerprint for fingerprint, _ in states]
    assert numbers([f"{url}@{states[2][0]}", url])[4] == 2 * whole(4)[4]  # in a list, too: 4 is in both


def test_fingerprint_that_is_unknown_or_ambiguous_is_a_named_error(url):
    now = es.edit.remove(url, "0").fingerprint
    with pytest.raises(SourceError, match=r"set@00000000: no manifest of a fingerprint that begins so is kept there"):
        es.open_dataset(f"{url}@00000000")
    twin = f"{now[:9]}{'0' * 23}"
    Path(url, f"manifest-{twin}.json").write_text("{}")
    for digits in (now[:8], now[:9]):
        with pytest.raises(SourceError, match=f"{digits}: 2 manifests of a fingerprint that begins so"):
            es.open_dataset(f"{url}@{digits}")
    assert es.open_dataset(f"{url}@{now}").fingerprint == now
    with pytest.raises(EditError, match="several fingerprints begin so"):
        es.edit.undo(url, "")
    with pytest.raises(EditError, match="'zz': no such fingerprint in its history"):
        es.edit.undo(url, "zz")


def test_state_of_before_an_edit_is_not_edited_but_merged(url, packed_more, tmp_path):
    before = es.edit.remove(url, "0").before
    for edit in (lambda at: es.edit.remove(at, "1"), es.edit.undo, es.edit.compact, es.edit.log):
        with pytest.raises(EditError, match=f"undo .*set --to {before}"):
            edit(f"{url}@{before}")
    merged = es.edit.merge([f"{url}@{before}", packed_more], tmp_path / "merged")
    assert numbers(merged.url) == whole(*range(14))


def test_folder_whose_name_ends_like_a_fingerprint_is_that_folder(packed_once, tmp_path):
    url = copied(packed_once, tmp_path / "set@0123456789")
    es.edit.remove(url, "0:9")
    assert numbers(url) == whole(9)


def test_undo_goes_back_edit_by_edit_and_forward_by_fingerprint(url):
    packed_as = es.open_dataset(url).fingerprint
    first = es.edit.remove(url, "0").fingerprint
    second = es.edit.remove(url, "0").fingerprint
    assert es.edit.undo(url).fingerprint == first
    report = es.edit.undo(url)
    assert (report.fingerprint, report.what) == (packed_as, "undone: 1 of 10 episodes removed")
    with pytest.raises(EditError, match="no edit to undo, it is as it was made"):
        es.edit.undo(url)
    assert es.edit.undo(url, second[:10]).what == f"as it was under {second[:8]}"
    assert numbers(url) == whole(*range(2, 10))
    assert es.edit.undo(url).fingerprint == packed_as  # what named a fingerprint is undone to where it came from
    with pytest.raises(EditError, match="it is so already"):
        es.edit.undo(url, packed_as)
    es.edit.remove(url, "9")
    assert es.edit.undo(url).fingerprint == packed_as
    assert [edit.fingerprint for edit in es.edit.log(url)].count(packed_as) == 4
    assert numbers(url) == whole(*range(10))


def test_undo_brings_back_names_splits_tasks_ranges_and_shards(url, more_files):
    wanted = seen(url)
    for edit in (
        lambda: es.edit.trim(url, (1, -1)),
        lambda: es.edit.tasks(url, "go"),
        lambda: es.edit.split(url, "val", "0:3"),
        lambda: es.edit.rename(url, {STATE: "action", "action": STATE}),
        lambda: es.edit.drop(url, "action"),
        lambda: es.edit.add(url, more_files),
    ):
        edit()
        es.edit.compact(url)
        es.edit.undo(url)
        es.edit.undo(url)
        assert seen(url) == wanted
        assert faults(url) == []
    assert es.open_dataset(url).splits == ("all",)


def test_added_episodes_that_were_undone_are_added_again_without_packing(url, more_files):
    first = es.edit.add(url, more_files).fingerprint
    before = payload(url)
    es.edit.undo(url)
    assert numbers(url) == whole(*range(10))
    assert es.edit.add(url, more_files).fingerprint == first
    assert payload(url) == before


def test_undo_after_prune_is_a_named_error_and_further_edits_work(url):
    packed_as = es.open_dataset(url).fingerprint
    for _ in range(3):
        es.edit.remove(url, "0")
    assert prune(url, 1).num_manifests == 2
    assert numbers(f"{url}@{es.edit.log(url)[2].fingerprint}") == whole(*range(2, 10))
    es.edit.undo(url)
    with pytest.raises(EditError, match=r"what it was under .* is not kept any more \('compact --prune' removes it\)"):
        es.edit.undo(url)
    with pytest.raises(EditError, match="is not kept any more"):
        es.edit.undo(url, packed_as)
    with pytest.raises(SourceError, match="no manifest of a fingerprint that begins so"):
        es.open_dataset(f"{url}@{packed_as}")
    es.edit.remove(url, "0")
    es.edit.undo(url)
    assert numbers(url) == whole(*range(2, 10))


def test_history_of_1000_edits_costs_opening_nothing(url, monkeypatch):
    real, read = storage.read_bytes, []

    def counted(at, *arguments, **options):
        data = real(at, *arguments, **options)
        read.append((Path(at).name.partition("-")[0], 0 if data is None else len(data)))
        return data

    def opening():
        read.clear()
        monkeypatch.setattr(manifest_file, "read_bytes", counted)
        es.open_dataset(url)
        monkeypatch.setattr(manifest_file, "read_bytes", real)
        return [name for name, _ in read], sum(size for _, size in read)

    assert opening()[0] == ["dataset.json", "dataset"]
    es.edit.tasks(url, "go")
    few = opening()
    history = es.edit.log(url)
    more = [replace(history[-1], fingerprint=f"{number:032x}", before=number) for number in range(999)]
    manifest = replace(manifest_file.read_manifest(url), history=History.of([history[0], *more, history[-1]]))
    document, tables = manifest_files(manifest, url)
    for name, data in {**tables, "dataset.json": document}.items():
        Path(url, name).write_bytes(data)
    many = opening()
    assert many[0] == few[0] == ["dataset.json", "dataset"]
    assert many[1] <= few[1] + 10  # the size and the number of edits have more digits
    es.edit.remove(url, "0")
    assert len(es.edit.log(url)) == 1002
    assert numbers(url) == whole(*range(1, 10))
