"""Prepared datasets of tensorflow-datasets as sources of music.

They are read from their files: tensorflow-datasets itself needs TensorFlow to open a dataset with audio.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from mgjax.audio import waveform
from mgjax.audio.metadata import Metadata
from mgjax.data import records
from mgjax.errors import CorpusError
from mgjax.inputs import files
from mgjax.storage import paths
from mgjax.storage.paths import Path

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclasses.dataclass(frozen=True)
class Fields:
    """Maps the features of a dataset to audio and metadata; "a/b" is the feature b in a."""

    audio: str = "audio"
    sample_rate: int | None = None  # of the audio, in hertz; None to take it from the dataset
    metadata: tuple[tuple[str, str], ...] = ()  # (field of Metadata, feature) pairs

    def __post_init__(self) -> None:
        known = [field.name for field in dataclasses.fields(Metadata)]
        for name, _ in self.metadata:
            if name not in known:
                raise ValueError(f"there is no field {name!r} of metadata; choose from {', '.join(known)}")


# Of some published datasets.
KNOWN_FIELDS = {
    "gtzan": Fields("audio", 22_050, (("genre", "label"),)),
    "nsynth": Fields("audio", 16_000, (("instrument", "instrument/family"), ("name", "id"))),
    "groove": Fields("audio", 16_000, (("genre", "style/primary"), ("bpm", "bpm"), ("name", "id"))),
}


@dataclasses.dataclass(frozen=True)
class DatasetSource:
    """An example of a dataset in the folder `directory`."""

    name: str
    directory: str
    split: str
    number: int
    fields: Fields

    def metadata(self, unused: list[str] | None = None) -> Metadata:
        """The metadata of the example. `unused` stays as it is: only chosen features are read.

        Raises ValueError if a feature has the wrong type for its field, or the dataset is damaged.
        """
        dataset = _open(self.directory)
        example = dataset.read(self.split, self.number)
        return Metadata.from_dict({field: dataset.plain(example, path) for field, path in self.fields.metadata})

    def blocks(self, sample_rate: int, channels: int) -> Iterator[Float32[np.ndarray, "n c"]]:
        """The audio as a single block, converted to `sample_rate` in hertz and `channels`.

        Raises ValueError if it has no audio that can be decoded, or the dataset is damaged.
        """
        dataset = _open(self.directory)
        content, rate = dataset.audio(dataset.read(self.split, self.number), self.fields.audio)
        rate = self.fields.sample_rate or rate
        if not rate:
            raise ValueError("the dataset does not tell the sample rate of its sound; give it (--source-rate)")
        yield waveform.resample(waveform.to_channels(waveform.check(content, self.name), channels), rate, sample_rate)


def find(source: str, fields: Fields | None = None) -> list[DatasetSource]:
    """All examples of a dataset, over all its splits.

    `source` is a folder with dataset_info.json in it, or "tfds:NAME" or "tfds:NAME/CONFIG", in the data directory of
    tensorflow-datasets. Without `fields`, those of KNOWN_FIELDS are read, or else the audio alone.

    Raises:
      CorpusError: It is missing, in a format that cannot be read, or lacks a feature.
    """
    directory = _locate(source.removeprefix("tfds:")) if source.startswith("tfds:") else paths.path(source)
    dataset = _open(paths.absolute(directory))
    fields = fields or KNOWN_FIELDS.get(dataset.name, Fields())
    for path in (fields.audio, *(path for _, path in fields.metadata)):
        if path not in dataset.features:
            raise CorpusError(
                f"{source}: has no feature {path!r}, but {', '.join(sorted(dataset.features))}; say which is what "
                "(--audio-feature, --field)"
            )
    return [
        DatasetSource(f"{split}/{number:08d}", paths.absolute(directory), split, number, fields)
        for split, shards in sorted(dataset.shards.items())
        for number in range(sum(count for _, count in shards))
    ]


def _locate(name: str) -> Path:
    """The folder of the newest prepared version of a dataset."""
    root = paths.path(os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")))
    folders = [path.parent for path in paths.below(root / name) if path.name == "dataset_info.json"]
    if not folders:
        raise CorpusError(
            f"tfds:{name}: is not in {root}; where tensorflow-datasets can reach it, run `tfds build {name} "
            "--file_format=array_record`, or name another folder by TFDS_DATA_DIR"
        )
    configs = sorted({path.parent.relative_to(root).as_posix() for path in folders})
    if len(configs) > 1:
        raise CorpusError(f"tfds:{name}: has several forms; choose from {', '.join(f'tfds:{c}' for c in configs)}")
    return max(folders, key=lambda path: [int(part) if part.isdigit() else 0 for part in path.name.split(".")])


class _Feature(NamedTuple):
    """A feature in features.json."""

    is_plain: bool  # numbers, neither encoded nor decoded lazily
    channels: int  # of audio, interleaved
    rate: int | None  # of audio, in hertz
    is_class: bool


class _Dataset:
    """A prepared dataset: its `features` by path, the path and the number of records of each of its `shards`."""

    def __init__(self, directory: Path):
        info = files.read_json(directory / "dataset_info.json", error=CorpusError)
        self.name = str(info["name"])
        if info.get("fileFormat") != "array_record":
            raise CorpusError(
                f"{directory}: holds {info.get('fileFormat', 'tfrecord')} files, only array_record is read; prepare it "
                f"by `tfds build {self.name} --file_format=array_record`"
            )
        self._directory = directory
        self.features = dict(_flat(files.read_json(directory / "features.json", error=CorpusError)))
        self.shards = {split["name"]: list(self._paths(split)) for split in info["splits"]}
        self._readers = records.Readers()

    def _paths(self, split: dict[str, Any]) -> Iterator[tuple[Path, int]]:
        counts = [int(count) for count in split["shardLengths"]]
        for i, count in enumerate(counts):
            name = split.get("filepathTemplate", _TEMPLATE)
            values = {"DATASET": self.name, "SPLIT": split["name"], "FILEFORMAT": "array_record"}
            for key, value in {**values, "SHARD_X_OF_Y": f"{i:05d}-of-{len(counts):05d}"}.items():
                name = name.replace(f"{{{key}}}", value)
            path = self._directory / name
            if not 0 <= count <= (paths.size(path) or 0):  # a record takes a byte or more
                raise ValueError(f"{name} is missing, or too small for {count} records")
            yield path, count

    def read(self, split: str, number: int) -> Any:
        """The features of an example, as of tf.train.Example; raises ValueError if the record is damaged or missing."""
        shards = iter(self.shards[split])
        path, count = next(shards)
        while number >= count:
            number -= count
            path, count = next(shards)
        try:
            return self._readers.read(path, [number])[0]
        except records.RecordError as error:
            raise ValueError(f"{path.name} {error}") from error

    def audio(self, example: Any, path: str) -> tuple[Float32[np.ndarray, "..."], int | None]:
        """The audio in a feature, and its rate in hertz if the dataset has it."""
        feature, values = self.features[path], _values(example, path)
        if not feature.is_plain or isinstance(values, list):
            raise ValueError(f"the feature {path} holds no plain samples")
        audio = values.astype(np.float32)
        if values.dtype == np.int64:  # tensorflow-datasets widens the 16 bits of a file
            audio /= 32768
        return audio if feature.channels == 1 else audio.reshape(-1, feature.channels), feature.rate

    def plain(self, example: Any, path: str) -> Any:
        """The value of a feature as a JSON value; a class by its name."""
        raw = _values(example, path)
        values = [value.decode() for value in raw] if isinstance(raw, list) else raw.tolist()
        value = values[0] if len(values) == 1 else values
        if self.features[path].is_class:
            names = _class_names(self._directory / f"{path.replace('/', '-')}.labels.txt")
            return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
        return value


@functools.lru_cache(maxsize=4)
def _open(directory: str) -> _Dataset:
    try:
        return _Dataset(paths.path(directory))
    except CorpusError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, FileNotFoundError) as error:
        raise CorpusError(
            f"{directory}: is no dataset that a recent tensorflow-datasets has prepared ({error!r})"
        ) from error


@functools.lru_cache(maxsize=16)
def _class_names(path: Path) -> list[str]:
    return files.read_text(path, files.LARGEST_TEXT, CorpusError).split("\n")[:-1]


def _flat(feature: dict[str, Any], path: str = "") -> Iterator[tuple[str, _Feature]]:
    """The path and the description of each feature."""
    if "featuresDict" not in feature:
        kind = feature.get("audio") or feature.get("tensor") or {}
        is_plain = not kind.get("lazyDecode") and kind.get("encoding", "none").lower() == "none"
        dimensions = kind.get("shape", {}).get("dimensions", [])
        channels = int(dimensions[1]) if len(dimensions) == 2 else 1
        yield path, _Feature(is_plain, channels, int(kind.get("sampleRate", 0)) or None, "classLabel" in feature)
        return
    for name, inner in feature["featuresDict"]["features"].items():
        yield from _flat(inner, f"{path}/{name}" if path else name)


def _values(example: Any, path: str) -> np.ndarray | list[bytes]:
    if path not in example:
        return []
    feature = example[path]
    kind = feature.WhichOneof("kind")
    if kind == "bytes_list":
        return list(feature.bytes_list.value)
    types = {"int64_list": np.int64, "float_list": np.float32}
    return np.array(getattr(feature, kind).value, types[kind]) if kind else []
