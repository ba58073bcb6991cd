"""Corpora of sound from every source; the same with any number of workers; what is left out, and going on."""

import contextlib
import csv
import dataclasses
import functools
import gzip
import json
import logging
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import dataset_info, example_serializer, naming, splits

from mgjax.audio import files as audio_files
from mgjax.audio.metadata import Metadata
from mgjax.audio.waveform import resample, to_channels
from mgjax.data import assembly, build, datasets, processes, sources
from mgjax.data.corpus import Corpus, CorpusError
from mgjax.inputs import claims, files
from mgjax.storage import paths

RATE = 4000
ROUNDING = 1 / 32768  # sound is kept in 16 bits
# Name, rate, channels, seconds.
SONGS = [("a.wav", 4000, 1, 2.5), ("b.flac", 4000, 2, 4.25), ("c/d.ogg", 8000, 1, 3.0), ("c/e.mp3", 16000, 2, 2.0)]


def _write(path, rate, channels, seconds, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = np.random.default_rng(seed).uniform(-0.5, 0.5, (round(rate * seconds), channels)).astype(np.float32)
    audio_files.write(path, sound, rate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music")
    for seed, (name, *form) in enumerate(SONGS):
        _write(folder / name, *form, seed=seed)
    (folder / "a.json").write_text(json.dumps({"title": "A", "moods": ["calm"], "bpm": 90}))
    (folder / ".hidden.wav").write_bytes(b"")
    (folder / "notes.txt").write_text("not music")
    return folder


def _build(source, directory, **options):
    return build.build(source, directory, **{"sample_rate": RATE, "valid": 0.0} | options)


def _contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def _resampled(path, channels=1):
    sound, rate = audio_files.read(path)
    return resample(to_channels(sound, channels), rate, RATE)


def test_a_folder(folder, tmp_path):
    seen = []
    report = _build(folder, tmp_path / "corpus", progress=lambda done, total: seen.append((done, total)))
    assert (report.pieces, report.skipped) == ({"train": 4, "valid": 0}, ())
    assert report.seconds["train"] == pytest.approx(2.5 + 4.25 + 3 + 2, abs=0.1)
    assert seen[-1] == (4, 4)
    corpus = Corpus.open(tmp_path / "corpus")
    assert [corpus.name(i) for i in range(4)] == [name for name, *_ in SONGS]
    assert corpus.metadata(0) == Metadata(title="A", moods=("calm",), bpm=90.0)
    assert corpus.metadata(1) == Metadata()
    for i, (name, *_) in enumerate(SONGS):
        np.testing.assert_allclose(corpus.read(i), _resampled(folder / name), atol=ROUNDING)  # measured: 1.6e-5
    left = {path.name for path in (tmp_path / "corpus").iterdir() if "array_record" not in path.name}
    assert left == {"corpus.json", "dataset_info.json", "features.json", "index-train.npz", "report.json"}
    with pytest.raises(CorpusError, match="has no split 'valid'"):
        Corpus.open(tmp_path / "corpus", "valid")


def test_a_stereo_corpus(folder, tmp_path):
    _build(folder, tmp_path / "corpus", channels=2)
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.width == 2
    for i, (name, *_) in enumerate(SONGS):
        np.testing.assert_allclose(corpus.read(i), _resampled(folder / name, 2), atol=ROUNDING)  # measured: 1.6e-5


def _csv(folder, path):
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "description", "bpm", "moods", "id"])
        rows.writerow(["a.wav", "slow, and calm", "", "warm;calm", "7"])
        rows.writerow(["c/d.ogg", "", "120", "", "8"])


def _jsonl(folder, path):
    rows = [
        {"path": "c/d.ogg", "bpm": 120, "id": 8},
        {"path": "a.wav", "description": "slow, and calm", "moods": ["warm", "calm"]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")


def _audiocraft(folder, path):
    (folder / "info.json").write_text(json.dumps({"bpm": 120}))
    (folder / "a2.json").write_text(json.dumps({"title": "A", "description": "slow, and calm", "moods": "warm, calm"}))
    rows = [
        {"path": str(folder / "a.wav"), "duration": 2.5, "sample_rate": 4000, "amplitude": None, "weight": None},
        {"path": str(folder / "c/d.ogg"), "duration": 3, "sample_rate": 8000, "amplitude": 0.5, "weight": 1.0},
    ]
    rows[0]["info_path"], rows[1]["info_path"] = "a2.json", str(folder / "info.json")
    with gzip.open(path, "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize(
    ("name", "write"), [("songs.csv", _csv), ("songs.jsonl", _jsonl), ("data.jsonl.gz", _audiocraft)]
)
def test_a_manifest(folder, tmp_path, name, write):
    write(folder, folder / name)
    assert _build(folder / name, tmp_path / "corpus").pieces["train"] == 2
    corpus = Corpus.open(tmp_path / "corpus")
    first, second = corpus.metadata(0), corpus.metadata(1)
    assert (first.title, first.description, first.moods) == ("A", "slow, and calm", ("warm", "calm"))
    assert second == Metadata(bpm=120.0)
    np.testing.assert_allclose(corpus.read(1), _resampled(folder / "c/d.ogg"), atol=ROUNDING)


GZIPPED = gzip.compress(b'{"path": "a.wav"}', mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "m.csv",
            "sound,title\na.wav,A\n",
            r"line 2: there is no path in it \(or file_name.*\); it has 'sound', 'title'",
        ),
        ("m.csv", "path,description\na.wav,calm, soft piano\n", "line 2: has more cells than .* into double quotes"),
        ("m.csv", b"path,title\na.wav,x\nb.wav,caf\xe9\n", "line 3: is not text in UTF-8"),
        ("m.csv", "path,title\na.wav," + 200_000 * "x", "line 2: is no manifest .*field larger than"),
        ("m.jsonl", '{"path": "a.wav"}\n{"path": "a.wav"}\n', "line 2: a.wav was listed before"),
        ("m.jsonl", "[1]\n", "line 1: there is no path in it"),
        ("m.jsonl", "{\n", "line 1: is not JSON"),
        ("m.jsonl", '{"path": "a.wav"}\n{"path": "b.wav", "bpm": ' + 5000 * "9" + "}", "line 2: .* fit into 64 bits"),
        ("m.jsonl", '{"path": "a.wav", "x": ' + 5000 * "[" + 5000 * "]" + "}", "line 1: is nested more than 64 levels"),
        ("m.jsonl", '{"path": "/"}', "line 1: '/' is no path of a file"),
        ("m.jsonl", '{"path": "."}', "line 1: '.' is no path of a file"),
        ("m.jsonl", '{"path": "a.wav", "info_path": [1]}', "line 1: info_path: expected a path"),
        ("m.csv", "", "there is no piece in it; expected a line of the names of its columns"),
        ("m.csv", "a.wav,calm\n", "there is no piece in it; expected a line of the names of its columns"),
        ("m.csv", "path,caption,caption\na.wav,calm,soft\n", "several columns are called 'caption'"),
        ("m.jsonl", '{"path": 7}', "line 1: 7 is no path of a file"),
        ("m.jsonl.gz", "plain", "is no manifest that can be read"),
        ("m.jsonl.gz", GZIPPED[:12] + b"\xff\xff" + GZIPPED[14:], "is no manifest that can be read"),
        ("m.jsonl.gz", GZIPPED[:-9], "is no manifest that can be read"),
        ("m.jsonl.gz", GZIPPED + b"more", "is no manifest that can be read"),
        ("m.jsonl.gz", gzip.compress(bytes(5000), mtime=0), "unpacks to more than"),
        ("m.jsonl", "\n", "there is no piece in it; expected a line for each piece"),
    ],
)
def test_a_manifest_that_cannot_be_understood(tmp_path, monkeypatch, name, content, message):
    if name.endswith(".gz"):
        monkeypatch.setattr(files, "LARGEST_TEXT", 4096)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorpusError, match=message):
        sources.find(tmp_path / name)


def test_paths_that_no_file_can_have_are_left_out(folder, tmp_path):
    rows = [{"path": str(folder / "a.wav")}, {"path": "a" * 5000 + ".wav"}, {"path": f"{'b' * 300}.wav"}]
    rows += [{"path": "c\ud83d.wav"}, {"path": "d\0.wav"}]
    (tmp_path / "songs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = _build(tmp_path / "songs.jsonl", tmp_path / "corpus", max_bad=4)
    assert len(report.skipped) == 4


def test_the_loser_of_two_builds_is_reported(folder, tmp_path):
    with claims.claimed(tmp_path), pytest.raises(FileExistsError, match="another run is at work in it"):
        _build(folder, tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "path, Description\na.wav,a waltz\n,\n"),
        ("m.csv", "path,description\na.wav,a waltz,,\n"),
        ("m.csv", ",path,caption\n0,a.wav,a waltz\n"),
        ("m.CSV", "\ufefffile_name;Caption;weight\na.wav;a waltz;3\n"),
        ("m.tsv", "file\ttext\na.wav\ta waltz\n"),
        ("m.tsv", "path,text\na.wav,a waltz\n"),
        ("m.jsonl", '{"audio": "a.wav", "Caption": "a waltz", "weight": 3}'),
        ("m.JSONL", '{"path": "a.wav", "description": "a waltz", "text": ""}'),
    ],
)
def test_a_manifest_in_other_words(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    [source] = sources.find(tmp_path / name)
    unused = []
    assert (source.name, source.path) == ("a.wav", str(tmp_path / "a.wav"))
    assert source.metadata(unused) == Metadata(description="a waltz")
    assert unused == (["weight"] if "weight" in content else [""] if content.startswith(",") else [])


@pytest.mark.parametrize("source", ["nowhere", "song.wav"])
def test_what_is_no_source(tmp_path, source):
    with pytest.raises(FileNotFoundError, match="expected a folder of sound files, a manifest"):
        sources.find(tmp_path / source)


def _dataset(directory):
    """A dataset such as tensorflow-datasets prepares, of two examples; without TensorFlow it makes no Audio itself."""
    samples = tfds.features.Tensor(shape=(None,), dtype=np.int64)
    style = {"primary": tfds.features.ClassLabel(names=["rock", "funk"])}
    features = tfds.features.FeaturesDict(
        {"sound": samples, "style": style, "words": tfds.features.Text(), "beats": tfds.features.Scalar(np.int64)}
    )
    examples = [
        {
            "sound": np.random.default_rng(i).integers(-9999, 9999, 16_000),
            "style": {"primary": i},
            "words": f"caption {i}",
            "beats": 100 + i,
        }
        for i in range(2)
    ]
    directory.mkdir(parents=True)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    template = naming.ShardedFileTemplate(directory, dataset_name="fake", split="test", filetype_suffix="array_record")
    for i, example in enumerate(examples):
        path = f"{directory}/fake-test.array_record-{i:05d}-of-00002"
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        writer.write(serializer.serialize_example(features.encode_example(example)))
        writer.close()
    info = dataset_info.DatasetInfo(
        builder=dataset_info.DatasetIdentity("fake", tfds.core.Version("1.0.0"), str(directory), "fake"),
        features=features,
    )
    info.set_file_format("array_record")
    info.set_splits(splits.SplitDict([splits.SplitInfo("test", [1, 1], 1, template)]))
    info.write_to_directory(directory)
    path = directory / "features.json"
    content = json.loads(path.read_text())
    content["featuresDict"]["features"]["sound"] = {
        "audio": {"dtype": "int64", "encoding": "NONE", "sampleRate": "8000", "shape": {"dimensions": ["-1"]}},
        "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
    }
    path.write_text(json.dumps(content))
    return examples


MEANING = datasets.Fields("sound", metadata=(("genre", "style/primary"), ("description", "words"), ("bpm", "beats")))


def test_a_dataset_of_tensorflow_datasets(tmp_path, monkeypatch):
    examples = _dataset(tmp_path / "fake/1.9.0")
    _dataset(tmp_path / "fake/1.10.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    _build("tfds:fake", tmp_path / "corpus", fields=MEANING)
    corpus = Corpus.open(tmp_path / "corpus")
    for i, example in enumerate(examples):
        genre = ["rock", "funk"][i]
        assert corpus.metadata(i) == Metadata(genre=genre, description=f"caption {i}", bpm=100.0 + i)
        expected = (example["sound"][:, None] / 32768).astype(np.float32)
        np.testing.assert_allclose(corpus.read(i), resample(expected, 8000, RATE), atol=ROUNDING)
    found = sources.find("tfds:fake", MEANING)
    assert found[0].directory.endswith("1.10.0")  # the newest version
    assert [source.name for source in sources.find(tmp_path / "fake/1.9.0", MEANING)] == [s.name for s in found]


def test_a_dataset_that_cannot_be_used(tmp_path, monkeypatch):
    _dataset(tmp_path / "fake/one/1.0.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(CorpusError, match="has no feature 'audio', but beats, sound, style/primary, words"):
        sources.find("tfds:fake")
    with pytest.raises(CorpusError, match="run `tfds build gtzan --file_format=array_record`"):
        sources.find("tfds:gtzan")
    shutil.copytree(tmp_path / "fake/one", tmp_path / "fake/two")
    with pytest.raises(CorpusError, match="choose from tfds:fake/one, tfds:fake/two"):
        sources.find("tfds:fake")
    info = tmp_path / "fake/two/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(CorpusError, match="holds tfrecord files, only array_record is read"):
        sources.find("tfds:fake/two")
    info.write_text("{}")
    datasets._open.cache_clear()
    with pytest.raises(CorpusError, match="is no dataset"):
        sources.find("tfds:fake/two")


def test_fields_are_those_of_metadata():
    with pytest.raises(ValueError, match="there is no field 'gerne' of metadata"):
        datasets.Fields(metadata=(("gerne", "label"),))


def test_loudness_is_that_which_was_asked_for(tmp_path):
    _write(tmp_path / "music/a.wav", 8000, 1, 5)
    _build(tmp_path / "music", tmp_path / "corpus", sample_rate=8000, loudness=-30)
    sound = Corpus.open(tmp_path / "corpus").read(0)
    measured = pyloudnorm.Meter(8000, block_size=0.4).integrated_loudness(sound)
    assert measured == pytest.approx(-30, abs=0.01)  # measured: 1e-4


# --- what is left out


def _spoil(folder):
    (folder / "bad.flac").write_bytes(b"fLaC but not really")
    whole = folder / "cut.flac"
    _write(whole, 8000, 1, 60)
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20_000] = bytes(20_000)  # the beginning of it can be read
    whole.write_bytes(data)
    audio_files.write(folder / "silent.wav", np.zeros((8000, 1), np.float32), 4000)
    _write(folder / "short.wav", 4000, 1, 0.5)
    _write(folder / "words.wav", 4000, 1, 2)
    (folder / "words.json").write_text('{"bpm": "fast"}')
    _write(folder / "good.wav", 4000, 1, 2)


def test_what_cannot_be_used_is_left_out_and_named(tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    _spoil(folder)
    with pytest.raises(CorpusError, match=r"5 of 6 pieces cannot be used, more than the share of 0.5 .* bad.flac: is"):
        _build(folder, tmp_path / "corpus", max_bad=0.5)
    with pytest.raises(CorpusError, match="holds no finished corpus"):
        Corpus.open(tmp_path / "corpus")
    report = _build(folder, tmp_path / "corpus", max_bad=0.9)
    reasons = dict(report.skipped)
    assert list(reasons) == ["bad.flac", "cut.flac", "short.wav", "silent.wav", "words.wav"]
    assert "is damaged, or no sound file" in reasons["bad.flac"]
    assert "is damaged" in reasons["cut.flac"] or "holds NaN" in reasons["cut.flac"]
    assert reasons["short.wav"] == "too short: 0.50 s, expected 1 s or more"
    assert reasons["silent.wav"] == "silent"
    assert reasons["words.wav"] == "words.json: bpm: expected a number above 0, got 'fast'"
    corpus = Corpus.open(tmp_path / "corpus")
    assert [corpus.name(i) for i in range(len(corpus))] == ["good.wav"]
    written = json.loads((tmp_path / "corpus/report.json").read_text())
    assert [tuple(pair) for pair in written["skipped"]] == list(report.skipped)
    sizes = json.loads((tmp_path / "corpus/corpus.json").read_text())["splits"]["train"]["shards"]
    assert sum(records for records, _ in sizes) == 1  # nothing of a damaged piece is in the shards


def test_all_music_is_found_and_each_folder_once(tmp_path, monkeypatch):
    _run_here(monkeypatch)
    folder, noise = tmp_path / "music", np.random.default_rng(0).uniform(-0.5, 0.5, 6000)
    (tmp_path / "far").mkdir()
    (folder / "near").mkdir(parents=True)
    kinds = {"caf": "CAF", "w64": "W64", "au": "AU", "rf64": "RF64", "wave": "WAV", "voc": "VOC", "AIFF": "AIFF"}
    for suffix, kind in kinds.items():
        soundfile.write(folder / f"a.{suffix}", noise, RATE, format=kind, subtype="PCM_16")
    for place in (folder / "near", tmp_path / "far"):
        soundfile.write(place / "b.wav", noise, RATE)
    for name in ("c.m4a", "d.webm", "e.WMA"):
        (folder / name).write_bytes(b"\0\0\0 ftypM4A ")
    for link, target in (
        ("0", "near"),
        ("1", "."),
        ("2", "../far"),
        ("3", "2"),
        ("near/up", ".."),
        ("again.caf", "a.caf"),
    ):
        (folder / link).symlink_to(target)
    report = _build(folder, tmp_path / "corpus", max_bad=0.5)
    corpus = Corpus.open(tmp_path / "corpus")
    expected = ["2/b.wav", *sorted(f"a.{suffix}" for suffix in kinds), "near/b.wav"]
    assert [corpus.name(i) for i in range(len(corpus))] == expected
    assert dict(report.skipped) == {
        name: f"{name[1:].lower()} cannot be read here; convert it to .wav or .flac"
        for name in ("c.m4a", "d.webm", "e.WMA")
    }
    assert set(soundfile.available_formats()) >= {
        "CAF",
        "W64",
        "AU",
        "RF64",
        "VOC",
        "AVR",
        "NIST",
        "IRCAM",
        "PVF",
        "SVX",
    }


def test_folders_that_cannot_be_read_are_reported(tmp_path, monkeypatch):
    _write(tmp_path / "a.wav", 4000, 1, 2)
    (tmp_path / "shut").mkdir()
    scan = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [source.name for source in sources.find(tmp_path)] == ["a.wav", "shut"]


def test_what_is_not_utf8_costs_a_piece_at_most(tmp_path, monkeypatch):
    _run_here(monkeypatch)
    folder = tmp_path / "music"
    for name in "abcdefg":
        _write(folder / f"{name}.wav", 4000, 1, 2)
    shutil.copy(folder / "a.wav", os.fsencode(folder) + b"/caf\xe9.wav")
    (folder / "b.json").write_bytes('{"title": "caf\xe9"}'.encode("latin-1"))
    (folder / "c.json").write_text('{"description": "a \\ud83d waltz"}')
    (folder / "d.json").write_text('{"moods": ["a \\ud83d"]}')
    (folder / "e.json").write_text('{"\\ud83d": "not used"}')
    os.mkfifo(folder / "f.json")
    report = _build(folder, tmp_path / "corpus", max_bad=0.9)
    reasons = dict(report.skipped)
    reasons.pop("caf\\udce9.wav", None)  # libsndfile need not open it
    assert reasons == {
        "b.wav": "b.json: is not text in UTF-8 (invalid continuation byte at byte 14)",
        "c.wav": "c.json: description: holds half of a character (a lone surrogate)",
        "d.wav": "d.json: moods: holds half of a character (a lone surrogate)",
        "f.wav": f"{folder / 'f.json'}: is no file, or a folder that cannot be read",
    }
    corpus = Corpus.open(tmp_path / "corpus")
    names = [corpus.name(i) for i in range(len(corpus))]
    assert [name for name in names if not name.startswith("caf")] == ["a.wav", "e.wav", "g.wav"]
    assert ("caf\\udce9.wav" in names) != ("caf\\udce9.wav" in dict(report.skipped))
    rows = [{"path": "a.wav", "title": "\ud83d"}, {"path": "\ud83d.wav"}, {"path": "a\0.wav"}, {"path": "g.wav"}]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = _build(folder / "m.jsonl", tmp_path / "other", max_bad=0.9)
    assert sorted(name for name, _ in report.skipped) == ["\\ud83d.wav", "a\0.wav", "a.wav"]


def _loud(folder, name, peak):
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).uniform(-peak, peak, 30 * RATE)  # three blocks
    soundfile.write(folder / name, noise, RATE, subtype="FLOAT")


def test_what_is_not_used_or_loud_is_said_once(tmp_path, monkeypatch, caplog):
    _run_here(monkeypatch)
    folder = tmp_path / "music"
    for name, peak in (("a", 0.9), ("b", 3.0), ("c", 7.5)):
        _loud(folder, f"{name}.wav", peak)
        (folder / f"{name}.json").write_text(json.dumps({"Weight": 3, "title": "T", "id": ""}))
    with caplog.at_level(logging.WARNING, "mgjax"):
        report = _build(folder, tmp_path / "corpus")
    assert report.notes == {
        "the key 'weight' is not used": (3, "a.wav"),
        "louder than full scale, and clipped": (2, "b.wav"),
    }
    assert caplog.messages == [
        "the key 'weight' is not used (3x, first in a.wav); louder than full scale, and clipped (2x, first in b.wav)"
    ]
    assert _build(folder, tmp_path / "corpus") == report
    assert not _build(folder, tmp_path / "quieter", loudness=-30).notes.keys() - {"the key 'weight' is not used"}


def test_sound_far_beyond_full_scale_is_left_out(tmp_path, monkeypatch):
    _run_here(monkeypatch)
    _loud(tmp_path / "music", "a.wav", 0.9)
    _loud(tmp_path / "music", "b.wav", 30_000.0)  # 16 bits in floating point
    [(name, reason)] = _build(tmp_path / "music", tmp_path / "corpus", max_bad=0.5).skipped
    assert name == "b.wav"
    assert "has a peak of" in reason


def test_nothing_that_can_be_used(tmp_path):
    _write(tmp_path / "music/a.wav", 4000, 1, 0.1)
    with pytest.raises(CorpusError, match="no piece could be used"):
        _build(tmp_path / "music", tmp_path / "corpus", max_bad=1.0)


# --- splits


def test_validation_depends_on_names_alone():
    def split(names):
        found = [sources.FileSource(name, name) for name in names]
        parts = build._shards(found, 0.2, None)
        return {name: {source.name for shard in shards for source in shard} for name, shards in parts.items()}

    names = [f"song {i}" for i in range(500)]
    first, more = split(names), split(sorted([*names, *(f"other {i}" for i in range(300))]))
    assert first["valid"] < more["valid"]
    assert first["train"] < more["train"]
    assert 70 <= len(first["valid"]) <= 130
    assert first["valid"] | first["train"] == set(names)
    few = split(["a", "b"])
    assert (len(few["train"]), len(few["valid"])) == (1, 1)


# --- many workers, and interruptions


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    for i in range(12):
        _write(folder / f"{i}.wav", 4000, 1, 1.5 + i / 10, seed=i)
    return folder


OPTIONS = {"valid": 0.2, "num_shards": 5}


@pytest.fixture(scope="module")
def alone(songs, tmp_path_factory):
    """What one worker makes of `songs`."""
    directory = tmp_path_factory.mktemp("alone") / "corpus"
    _build(songs, directory, **OPTIONS)
    return _contents(directory)


@dataclasses.dataclass(frozen=True)
class Killed:
    """A maker whose process is killed once, at one piece."""

    maker: build.AudioMaker
    name: str
    mark: str

    @contextlib.contextmanager
    def open(self, source, scratch):
        with self.maker.open(source, scratch) as piece:
            if source.name == self.name and not os.path.exists(self.mark):
                late = time.monotonic() + 10  # the others may finish, so that few workers have to be started again
                while len(list(scratch.glob("*-*.json"))) < 3 and time.monotonic() < late:
                    time.sleep(0.05)
                Path(self.mark).write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            yield piece


def test_two_workers_of_which_one_is_killed_make_the_same_corpus(songs, alone, tmp_path):
    plan = build.make_plan(songs, RATE, 1, 0.2, 1.0, None, num_shards=5)
    shard = next(shard for shard in plan.shards["train"] if len(shard) > 1)
    mark = tmp_path / "mark"
    plan = dataclasses.replace(plan, maker=Killed(plan.maker, shard[-1].name, str(mark)))
    report = assembly.assemble(tmp_path / "corpus", plan, workers=2)
    assert int(mark.read_text()) != os.getpid()
    assert sum(report.pieces.values()) == 12
    assert _contents(tmp_path / "corpus") == alone


def test_beam_can_be_told_how_to_run(songs, alone, tmp_path):
    options = ["--direct_running_mode=multi_threading", "--direct_num_workers=2"]
    _build(songs, tmp_path / "corpus", **OPTIONS, beam_options=options)
    assert _contents(tmp_path / "corpus") == alone


def test_beam_runs_in_processes_of_its_own(songs, alone, tmp_path):
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    _build(songs, tmp_path / "corpus", **OPTIONS, beam_options=options)
    assert _contents(tmp_path / "corpus") == alone


def test_any_runner_of_beam_can_be_sent_the_work(songs, tmp_path):
    """The pipeline becomes the portable form that runners read, and comes back from it whole."""
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    plan = build.make_plan(songs, RATE, 1, 0.2, 1.0, None)
    make = functools.partial(
        assembly._make_shard, paths.path("gs://bucket/corpus"), tmp_path, plan.description, plan.maker
    )
    proto = processes.pipeline(make, plan.jobs(), ["--runner=FlinkRunner"]).to_runner_api()
    again = type(proto).FromString(proto.SerializeToString())
    steps = {transform.unique_name for transform in again.components.transforms.values()}
    assert {"Create", "Reshuffle"} < steps
    apache_beam.Pipeline.from_runner_api(again, "FlinkRunner", PipelineOptions())


@dataclasses.dataclass(frozen=True)
class Counted:
    """A maker that notes what it makes, and may be stopped."""

    maker: build.AudioMaker
    opened: list
    stop_at: int | None = None

    @contextlib.contextmanager
    def open(self, source, scratch):
        if len(self.opened) == self.stop_at:
            raise RuntimeError("stopped here")
        self.opened.append(source.name)
        with self.maker.open(source, scratch) as piece:
            yield piece


def _run_here(monkeypatch):
    """Runs without Beam, which pickles the maker, so that it can be watched."""
    monkeypatch.setattr(processes, "run", lambda make, jobs, options: [make(job) for job in jobs])


def test_an_interrupted_build_goes_on(songs, alone, tmp_path, monkeypatch):
    plan = build.make_plan(songs, RATE, 1, 0.2, 1.0, None, num_shards=5)
    _run_here(monkeypatch)
    directory, first, second = tmp_path / "corpus", [], []
    with pytest.raises(RuntimeError, match="stopped here"):
        assembly.assemble(directory, dataclasses.replace(plan, maker=Counted(plan.maker, first, 7)))
    with pytest.raises(CorpusError, match="holds no finished corpus"):
        Corpus.open(directory)
    with pytest.raises(FileExistsError, match="unfinished corpus of other sources or settings"):
        _build(songs, directory, valid=0.3)
    again = dataclasses.replace(plan, maker=Counted(plan.maker, second))
    report = assembly.assemble(directory, again)
    assert 5 <= len(second) < 12  # only the shards that were missing
    assert set(first) | set(second) == {f"{i}.wav" for i in range(12)}
    assert _contents(directory) == alone
    assert assembly.assemble(directory, again) == report
    assert len(second) < 12  # it was there already


@pytest.mark.parametrize("mended", [True, False])
def test_bad_pieces_are_mended_or_removed_and_what_is_done_is_kept(tmp_path, monkeypatch, mended):
    _run_here(monkeypatch)
    folder, directory = tmp_path / "music", tmp_path / "corpus"
    for i in range(8):
        _write(folder / f"{i}.wav", 4000, 1, 1.5 + i / 10, seed=i)
    good = (folder / "7.wav").read_bytes()
    (folder / "7.wav").write_bytes(b"not yet music")
    with pytest.raises(CorpusError, match="run it again: what is done is kept, where its pieces stay"):
        _build(folder, directory)
    if mended:
        (folder / "7.wav").write_bytes(good)
    else:
        (folder / "7.wav").unlink()
    (directory / "unfinished/train-00002.json").write_text('{"hash": "of another"}')
    (directory / "mgjax_audio-train.array_record-00003-of-00008").write_bytes(b"cut")
    plan, opened = build.make_plan(folder, RATE, 1, 0.0, 1.0, None), []
    assembly.assemble(directory, dataclasses.replace(plan, maker=Counted(plan.maker, opened)))
    # Without the last piece there are seven shards of seven, and none is what it was.
    assert opened == (["2.wav", "3.wav", "7.wav"] if mended else [f"{i}.wav" for i in range(7)])
    _build(folder, tmp_path / "fresh")
    assert _contents(directory) == _contents(tmp_path / "fresh")
    with pytest.raises(FileExistsError, match="unfinished corpus of other sources or settings"):
        _other_folder(folder, tmp_path)


def _other_folder(folder, tmp_path):
    """An unfinished corpus is not gone on with from another folder."""
    (folder / "0.wav").write_bytes(b"no music")
    with pytest.raises(CorpusError, match="cannot be used"):
        _build(folder, tmp_path / "third")
    shutil.copytree(folder, tmp_path / "elsewhere")
    _build(tmp_path / "elsewhere", tmp_path / "third", max_bad=0.9)


def test_a_folder_is_of_one_run_at_a_time(songs, tmp_path):
    with claims.claimed(tmp_path / "corpus"), pytest.raises(FileExistsError, match="corpus: another run is at work in"):
        _build(songs, tmp_path / "corpus")
    assert not any((tmp_path / "corpus").iterdir())


def test_a_corpus_goes_by_a_name_in_utf8(songs, tmp_path):
    with pytest.raises(FileExistsError, match=r"caf\\udce9: is not a name in UTF-8"):
        _build(songs, tmp_path / "caf\udce9")


def test_what_others_wrote_stays(folder, tmp_path, monkeypatch):
    _run_here(monkeypatch)
    directory = tmp_path / "corpus"
    foreign = {"corpus.json": '{"documents": []}', "unfinished/plan.json": '{"chapters": 3}', "report.json": "{}"}
    for name, content in foreign.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
        for options in ({}, {"replace": True}):
            with pytest.raises(FileExistsError, match=r"choose another folder"):
                _build(folder, directory, **options)
        assert _contents(directory) == {name: content.encode()}
        shutil.rmtree(directory)
    _build(folder, directory)
    mine = {"unfinished/draft.txt", "index-mine.npz", ".mine.tmp", "notes/report.json"}
    for name in mine:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("mine")
    _build(folder, directory, replace=True, channels=2)
    assert {name for name, content in _contents(directory).items() if content == b"mine"} == mine


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"hash": "HASH", "skipped": 3}', "[" * 100_000])
def test_a_damaged_report_is_said(folder, tmp_path, monkeypatch, content):
    _run_here(monkeypatch)
    _build(folder, tmp_path / "corpus")
    plan = build.make_plan(folder, RATE, 1, 0.0, 1.0, None)
    (tmp_path / "corpus/report.json").write_text(content.replace("HASH", plan.hash))
    with pytest.raises(CorpusError, match=r"report\.json: is "):
        _build(folder, tmp_path / "corpus")
    assert _build(folder, tmp_path / "corpus", replace=True).pieces["train"] == 4


def test_a_corpus_is_replaced_only_on_request(folder, songs, tmp_path, monkeypatch):
    _run_here(monkeypatch)
    directory = tmp_path / "corpus"
    _build(songs, directory)
    with pytest.raises(FileExistsError, match="holds a corpus of other sources or settings"):
        _build(folder, directory)
    (directory / "mine.txt").write_text("stays")
    _build(folder, directory, replace=True)
    assert len(Corpus.open(directory)) == len(SONGS)
    assert (directory / "mine.txt").read_text() == "stays"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("dear")
    for options in ({}, {"replace": True}):
        with pytest.raises(FileExistsError, match="is not empty and holds no corpus"):
            _build(folder, tmp_path / "other", **options)


@dataclasses.dataclass(frozen=True)
class Failing:
    """A maker that fails, or whose process is killed, always."""

    is_killed: bool

    @contextlib.contextmanager
    def open(self, source, scratch):
        if self.is_killed:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("no space")
        yield


def test_workers_that_fail_are_reported(tmp_path):
    _write(tmp_path / "a.wav", 4000, 1, 2)
    plan = build.make_plan(tmp_path, RATE, 1, 0.0, 1.0, None)
    failing = dataclasses.replace(plan, maker=Failing(is_killed=False))
    with pytest.raises(CorpusError, match=r"the workers failed: OSError: no space. All they said is in .*workers.log"):
        assembly.assemble(tmp_path / "corpus", failing, workers=2)
    killed = dataclasses.replace(plan, maker=Failing(is_killed=True))
    with pytest.raises(CorpusError, match="workers died 3 times before they finished a shard"):
        assembly.assemble(tmp_path / "corpus", killed, workers=2)


@pytest.mark.parametrize("wrong", [{"channels": 3}, {"sample_rate": 0}, {"valid": 1.0}])
def test_settings_are_checked(folder, tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        _build(folder, tmp_path / "corpus", **wrong)
