"""Where a corpus is made from: folders of sound files, manifests, and datasets of tensorflow-datasets."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from mgjax.data import audio, datasets
from mgjax.data.corpus import CorpusError
from mgjax.data.datasets import DatasetSource, Fields
from mgjax.data.metadata import Metadata

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
MANIFESTS = (".csv", ".jsonl", ".jsonl.gz")
_BLOCK_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class FileSource:
    """A sound file.

    Attributes:
      name: What tells it from the others: its path in the folder, or as the manifest has it.
      path: Where it is.
      sidecar: Where the JSON file with its metadata is, if there is one.
      row: The JSON of the manifest's row about it, which goes before the sidecar.
      stamp: Size and time of the last change of both files, so that a change is noticed.
    """

    name: str
    path: str
    sidecar: str | None = None
    row: str | None = None
    stamp: tuple[int, ...] = ()

    def metadata(self) -> Metadata:
        """What is known of it.

        Raises:
          MetadataError, OSError: The sidecar cannot be read or understood.
        """
        known = {}
        if self.sidecar is not None:
            known = Metadata.from_json(Path(self.sidecar).read_bytes(), os.path.basename(self.sidecar)).to_dict()
        if self.row is not None:
            known |= Metadata.from_json(self.row, "manifest").to_dict()
        return Metadata.from_dict(known)

    def blocks(self, sample_rate: int, channels: int) -> Iterator[Float32[np.ndarray, "n c"]]:
        """Its sound in order, as blocks of the rate and the channels that are asked for.

        Raises:
          OSError, ValueError: As `audio.blocks`.
        """
        yield from audio.blocks(self.path, _BLOCK_SECONDS, sample_rate, channels)


Source = FileSource | DatasetSource


def find(source: str | os.PathLike[str], fields: Fields | None = None) -> list[Source]:
    """All pieces of `source`, in an order that does not change.

    Args:
      source: A folder of sound files, each with a JSON file of the same stem beside it or without; a manifest
        (.csv, .jsonl or .jsonl.gz, audiocraft's data.jsonl.gz among them) with a column or key `path`, relative to the
        manifest, and the fields of `Metadata`; or a dataset that tensorflow-datasets has prepared, see `datasets.find`.
      fields: What the features of such a dataset mean.

    Raises:
      FileNotFoundError: There is no such thing.
      CorpusError: There is no music in it, or the manifest cannot be understood.
    """
    text = os.fspath(source)
    if text.startswith("tfds:") or Path(text, "dataset_info.json").is_file():
        found = datasets.find(text, fields)
    elif fields is not None:
        raise CorpusError(f"{text}: is no dataset of tensorflow-datasets, so it has no features to choose from")
    elif Path(text).is_dir():
        found = _find_files(Path(text))
    elif text.endswith(MANIFESTS):
        found = _read_manifest(Path(text))
    else:
        raise FileNotFoundError(
            f"{text}: expected a folder of sound files, a manifest ({', '.join(MANIFESTS)}) or tfds:NAME"
        )
    if not found:
        raise CorpusError(f"{text}: there is no music in it; looked for {', '.join(SUFFIXES)}")
    return found


def _find_files(folder: Path) -> list[Source]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        present = set(names)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES and not name.startswith("."):
                path = Path(parent, name)
                sidecar = str(Path(parent, f"{stem}.json")) if f"{stem}.json" in present else None
                found.append(_file(path.relative_to(folder).as_posix(), str(path.absolute()), sidecar))
    return sorted(found, key=lambda source: source.name)


def _file(name: str, path: str, sidecar: str | None, row: str | None = None) -> FileSource:
    stamp = []
    for file in filter(None, (path, sidecar)):
        try:
            state = os.stat(file)
            stamp += [state.st_size, state.st_mtime_ns]
        except OSError:  # it will be among the pieces that cannot be used
            stamp.append(-1)
    sidecar = None if sidecar is None else os.path.abspath(sidecar)
    return FileSource(name, os.path.abspath(path), sidecar, row, tuple(stamp))


def _read_manifest(path: Path) -> list[Source]:
    read = _csv_rows if path.suffix == ".csv" else _json_rows
    found = {}
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for number, row in read(content.decode("utf-8-sig")):
            name = row.get("path")
            if not isinstance(name, str) or not name:
                raise CorpusError(f"{path}, line {number}: there is no path in it")
            if name in found:
                raise CorpusError(f"{path}, line {number}: {name} was listed before; each piece may stand there once")
            sound = path.parent / name
            given = row.get("info_path")
            sidecar = path.parent / given if isinstance(given, str) and given else sound.with_suffix(".json")
            sidecar = str(sidecar) if given or sidecar.is_file() else None
            found[name] = _file(name, str(sound), sidecar, json.dumps(row, sort_keys=True))
    except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile) as error:
        raise CorpusError(f"{path}: is no manifest that can be read ({error})") from error
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path}: a line is not JSON ({error})") from error
    return sorted(found.values(), key=lambda source: source.name)


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.DictReader(io.StringIO(text), restkey="")
    for row in rows:
        yield rows.line_num, row


def _json_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = json.loads(line)
            yield number, row if isinstance(row, dict) else {}
