"""Descriptions of prepared datasets that are damaged: reported in one sentence, without much work."""

import json

import pytest

from mgjax.data import datasets
from mgjax.data.corpus import CorpusError

INFO = {"name": "songs", "fileFormat": "array_record", "splits": [{"name": "train", "shardLengths": ["2"]}]}
FEATURES = {"featuresDict": {"features": {"audio": {"audio": {"sampleRate": "8000", "shape": {"dimensions": ["-1"]}}}}}}


def write(folder, info=INFO, features=FEATURES):
    folder.mkdir(exist_ok=True)
    for name, content in (("dataset_info.json", info), ("features.json", features)):
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / "songs-train.array_record-00000-of-00001").write_bytes(bytes(70_000))
    datasets._open.cache_clear()
    return folder


def split(**changes):
    return {**INFO, "splits": [{**INFO["splits"][0], **changes}]}


def audio(**changes):
    return {"featuresDict": {"features": {"audio": {"audio": changes}}}}


def test_what_is_whole_is_found(tmp_path):
    assert len(datasets.find(str(write(tmp_path / "a")))) == 2


@pytest.mark.parametrize(
    "damage",
    [
        {"info": "{"},
        {"info": "[" * 100_000},
        {"info": []},
        {"info": {**INFO, "splits": {"name": 1}}},
        {"info": {**INFO, "splits": None}},
        {"info": split(shardLengths=["1" * 5000])},
        {"info": split(shardLengths=[str(10**15)])},
        {"info": split(shardLengths=["-1"])},
        {"info": split(shardLengths=["1"] * 3)},
        {"info": split(filepathTemplate="{SPLIT:>999999999}")},
        {"info": split(filepathTemplate="{DATASET.__class__}")},
        {"info": split(filepathTemplate="a\0b")},
        {"info": split(name=["/"])},
        {"features": "\ufeff["},
        {"features": '{"featuresDict": {"features": {"a": ' * 50_000},
        {"features": {"featuresDict": {"features": {"audio": 3}}}},
        {"features": {"featuresDict": []}},
        {"features": audio(sampleRate="many")},
        {"features": audio(encoding=3)},
        {"features": audio(shape={"dimensions": ["1", "x"]})},
        {"features": {"featuresDict": {"features": {"sound": {}}}}},
    ],
)
def test_damage_is_reported(tmp_path, damage):
    with pytest.raises(CorpusError):
        datasets.find(str(write(tmp_path / "a", **damage)))
