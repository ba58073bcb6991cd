"""Datasets that tensorflow-datasets has prepared, as sources of music.

They are read from their files, since tensorflow-datasets itself opens none that holds sound where TensorFlow is not
installed (its feature `Audio` needs it).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from mgjax.audio import waveform
from mgjax.audio.metadata import Metadata
from mgjax.data import records
from mgjax.errors import CorpusError
from mgjax.inputs import files

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclasses.dataclass(frozen=True)
class Fields:
    """Which features of a dataset mean what; "a/b" is the feature b in a.

    Attributes:
      audio: The sound.
      sample_rate: Its rate in hertz; None: as the dataset says.
      metadata: (field of Metadata, feature) pairs.
    """

    audio: str = "audio"
    sample_rate: int | None = None
    metadata: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        known = [field.name for field in dataclasses.fields(Metadata)]
        for name, _ in self.metadata:
            if name not in known:
                raise ValueError(f"there is no field {name!r} of metadata; choose from {', '.join(known)}")


# What is known of some published datasets.
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
        """What is known of it; all that is asked for is used.

        Raises:
          ValueError: A feature is not what its field needs, or the dataset is damaged.
        """
        dataset = _open(self.directory)
        example = dataset.read(self.split, self.number)
        return Metadata.from_dict({field: dataset.plain(example, path) for field, path in self.fields.metadata})

    def blocks(self, sample_rate: int, channels: int) -> Iterator[Float32[np.ndarray, "n c"]]:
        """Its sound as one block of the rate and the channels that are asked for.

        Raises:
          ValueError: It has no sound that can be understood, or the dataset is damaged.
        """
        dataset = _open(self.directory)
        content, rate = dataset.sound(dataset.read(self.split, self.number), self.fields.audio)
        rate = self.fields.sample_rate or rate
        if not rate:
            raise ValueError("the dataset does not tell the sample rate of its sound; give it (--source-rate)")
        yield waveform.resample(waveform.to_channels(waveform.check(content, self.name), channels), rate, sample_rate)


def find(source: str, fields: Fields | None = None) -> list[DatasetSource]:
    """All examples of a dataset, over all its splits.

    Args:
      source: A folder with dataset_info.json in it, or "tfds:NAME" or "tfds:NAME/CONFIG", which is looked for where
        tensorflow-datasets puts it.
      fields: What its features mean; None: as KNOWN_FIELDS has them, else the sound alone.

    Raises:
      CorpusError: It is not there, or in a form that cannot be read, or lacks a feature.
    """
    directory = _locate(source.removeprefix("tfds:")) if source.startswith("tfds:") else Path(source)
    dataset = _open(str(directory.absolute()))
    fields = fields or KNOWN_FIELDS.get(dataset.name, Fields())
    for path in (fields.audio, *(path for _, path in fields.metadata)):
        if path not in dataset.features:
            raise CorpusError(
                f"{source}: has no feature {path!r}, but {', '.join(sorted(dataset.features))}; say which is what "
                "(--audio-feature, --field)"
            )
    return [
        DatasetSource(f"{split}/{number:08d}", str(directory.absolute()), split, number, fields)
        for split, shards in sorted(dataset.shards.items())
        for number in range(sum(count for _, count in shards))
    ]


def _locate(name: str) -> Path:
    """The newest version of a dataset among those that tensorflow-datasets has prepared."""
    root = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    found = [path.parent for path in (root / name).glob("**/dataset_info.json")]
    if not found:
        raise CorpusError(
            f"tfds:{name}: is not in {root}; where tensorflow-datasets can reach it, run `tfds build {name} "
            "--file_format=array_record`, or name another folder by TFDS_DATA_DIR"
        )
    configs = sorted({path.parent.relative_to(root).as_posix() for path in found})
    if len(configs) > 1:
        raise CorpusError(f"tfds:{name}: has several forms; choose from {', '.join(f'tfds:{c}' for c in configs)}")
    return max(found, key=lambda path: [int(part) if part.isdigit() else 0 for part in path.name.split(".")])


class _Feature(NamedTuple):
    """What features.json says of a feature: whether it holds plain numbers, of so many channels in a row and of this
    rate if it is sound; and whether they are those of classes."""

    is_plain: bool
    channels: int
    rate: int | None
    is_class: bool


class _Dataset:
    """A prepared dataset.

    Attributes:
      name: As tensorflow-datasets knows it.
      features: Each under its path.
      shards: The path and the number of records of each shard of each split.
    """

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
        self._readers: dict[Path, Any] = {}

    def _paths(self, split: dict[str, Any]) -> Iterator[tuple[Path, int]]:
        counts = [int(count) for count in split["shardLengths"]]
        for i, count in enumerate(counts):
            name = split.get("filepathTemplate", _TEMPLATE)
            values = {"DATASET": self.name, "SPLIT": split["name"], "FILEFORMAT": "array_record"}
            for key, value in {**values, "SHARD_X_OF_Y": f"{i:05d}-of-{len(counts):05d}"}.items():
                name = name.replace(f"{{{key}}}", value)
            path = self._directory / name
            if not 0 <= count <= (path.stat().st_size if path.is_file() else 0):  # a record takes a byte or more
                raise ValueError(f"{name} is missing, or too small for {count} records")
            yield path, count

    def read(self, split: str, number: int) -> Any:
        """The features of an example, as tf.train.Example has them.

        Raises:
          ValueError: The record is damaged or missing.
        """
        shards = iter(self.shards[split])
        path, count = next(shards)
        while number >= count:
            number -= count
            path, count = next(shards)
        try:
            return records.read(self._readers, path, [number])[0]
        except records.RecordError as error:
            raise ValueError(f"{path.name} {error}") from error

    def sound(self, example: Any, path: str) -> tuple[Float32[np.ndarray, "..."], int | None]:
        """The sound in a feature, and its rate in hertz if the dataset tells it."""
        feature, values = self.features[path], _values(example, path)
        if not feature.is_plain or isinstance(values, list):
            raise ValueError(f"the feature {path} holds no plain samples")
        sound = values.astype(np.float32)
        if values.dtype == np.int64:  # tensorflow-datasets widens the 16 bits of a file
            sound /= 32768
        return sound if feature.channels == 1 else sound.reshape(-1, feature.channels), feature.rate

    def plain(self, example: Any, path: str) -> Any:
        """The value of a feature as JSON has it; the name of a class instead of its number."""
        values = _values(example, path)
        values = [value.decode() for value in values] if isinstance(values, list) else values.tolist()
        value = values[0] if len(values) == 1 else values
        if self.features[path].is_class:
            names = _class_names(self._directory / f"{path.replace('/', '-')}.labels.txt")
            return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
        return value


@functools.lru_cache(maxsize=4)
def _open(directory: str) -> _Dataset:
    try:
        return _Dataset(Path(directory))
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
    """The path of each feature, and what is said of it."""
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
