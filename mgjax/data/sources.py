"""Where a corpus is made from: folders of sound files, manifests, and datasets of tensorflow-datasets."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from mgjax.audio import files as audio_files
from mgjax.audio.metadata import Metadata, escaped
from mgjax.data import datasets
from mgjax.data.datasets import DatasetSource, Fields
from mgjax.errors import CorpusError
from mgjax.inputs import files

# What libsndfile reads.
SUFFIXES = (
    *(".wav", ".wave", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc"),
    *(".caf", ".au", ".snd", ".voc", ".avr", ".nist", ".sph", ".sf", ".ircam", ".paf", ".pvf", ".svx", ".8svx"),
)
# Music that it does not read: such pieces are left out, and the report says so.
UNREADABLE = (
    *(".m4a", ".m4b", ".mp4", ".aac", ".ac3", ".wma", ".webm", ".weba", ".mka", ".amr", ".ape", ".wv", ".tta"),
    *(".mpc", ".dsf", ".dff", ".3gp", ".ra"),
)
MANIFESTS = (".csv", ".tsv", ".jsonl", ".jsonl.gz")
_PATHS = ("path", "file_name", "filename", "file", "audio")  # which a row may have its path under
_BLOCK_SECONDS = 10.0
_LONGEST_PATH = 4096  # characters


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

    def metadata(self, unused: list[str] | None = None) -> Metadata:
        """What is known of it; keys that say nothing here are added to `unused`.

        Raises:
          MetadataError, OSError: The sidecar cannot be read or understood.
        """
        known, keys = {}, []
        if self.sidecar is not None:
            content = files.read_bytes(_regular(self.sidecar))
            known = Metadata.from_json(content, os.path.basename(self.sidecar), keys).to_dict()
        if self.row is not None:
            known |= Metadata.from_json(self.row, "manifest", keys).to_dict()
        if unused is not None:
            unused += [key for key in keys if key not in (*_PATHS, "info_path")]
        return Metadata.from_dict(known)

    def blocks(self, sample_rate: int, channels: int) -> Iterator[Float32[np.ndarray, "n c"]]:
        """Its sound in order, as blocks of the rate and the channels that are asked for.

        Raises:
          OSError, ValueError: As `audio.blocks`.
        """
        suffix = os.path.splitext(self.path)[1].lower()
        if suffix in UNREADABLE:
            raise ValueError(f"{suffix} cannot be read here; convert it to .wav or .flac")
        # Who makes a corpus says once of all pieces what is clipped.
        yield from audio_files.blocks(_regular(self.path), _BLOCK_SECONDS, sample_rate, channels, said={"loud"})


Source = FileSource | DatasetSource


def find(source: str | os.PathLike[str], fields: Fields | None = None) -> list[Source]:
    """All pieces of `source`, in an order that does not change.

    Args:
      source: A folder of sound files, each with a JSON file of the same stem beside it or without (links are followed,
        and each folder is read once); a manifest (.csv, .tsv, .jsonl or .jsonl.gz, audiocraft's data.jsonl.gz among
        them) with a column or key `path`, relative to the manifest, and the fields of `Metadata`; or a dataset that
        tensorflow-datasets has prepared, see `datasets.find`.
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
    elif text.lower().endswith(MANIFESTS):
        found = _read_manifest(Path(text))
        if not found:
            table = " a line of the names of its columns and then" * (not text.lower().endswith((".jsonl", ".gz")))
            raise CorpusError(f"{text}: there is no piece in it; expected{table} a line for each piece")
    else:
        raise FileNotFoundError(
            f"{text}: expected a folder of sound files, a manifest ({', '.join(MANIFESTS)}) or tfds:NAME"
        )
    if not found:
        raise CorpusError(f"{text}: there is no music in it; looked for {', '.join(SUFFIXES)}")
    return found


def _find_files(folder: Path) -> list[Source]:
    found, seen, tops = [], set(), [str(folder)]

    def unreadable(error: OSError) -> None:  # a folder, which is told of as a piece that cannot be used
        found.append(_file(os.path.relpath(error.filename, folder), error.filename, None))

    for top in tops:  # grows by the links that are found, so that a folder goes by its own name if it has one in here
        for parent, folders, names in os.walk(top, onerror=unreadable):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            tops += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
            present = set(names)
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in (*SUFFIXES, *UNREADABLE) and not name.startswith("."):
                    path = Path(parent, name)
                    sidecar = str(Path(parent, f"{stem}.json")) if f"{stem}.json" in present else None
                    found.append(_file(path.relative_to(folder).as_posix(), str(path.absolute()), sidecar))
    # A link to another of them is the same music once more, and could stand on both sides of a split.
    real = {source.path for source in found}
    found = [one for one in found if not os.path.islink(one.path) or os.path.realpath(one.path) not in real]
    return sorted(found, key=lambda source: source.name)


def _regular(path: str) -> str:
    """The path again, unless it is of something that a worker could wait on for ever."""
    if len(path) > _LONGEST_PATH:
        raise OSError(f"{path[:200]}...: is too long for the path of a file")
    try:
        mode = os.stat(path).st_mode
    except ValueError as wrong:  # half of a character, or NUL
        raise OSError(f"{escaped(path)}: is no name of a file ({wrong!s:.200})") from None
    if not stat.S_ISREG(mode):
        raise OSError(f"{path}: is no file, or a folder that cannot be read")
    return path


def _file(name: str, path: str, sidecar: str | None, row: str | None = None) -> FileSource:
    stamp = []
    for file in filter(None, (path, sidecar)):
        try:
            state = os.stat(file)
            stamp += [state.st_size, state.st_mtime_ns]
        except (OSError, ValueError):  # it will be among the pieces that cannot be used
            stamp.append(-1)
    sidecar = None if sidecar is None else os.path.abspath(sidecar)
    return FileSource(escaped(name), os.path.abspath(path), sidecar, row, tuple(stamp))


def _read_manifest(path: Path) -> list[Source]:
    read = _json_rows if path.name.lower().endswith((".jsonl", ".gz")) else _csv_rows
    found = {}
    for number, row in read(path, _content(path)):
        where, keys = f"{path}, line {number}", {key.strip().lower(): row[key] for key in reversed(row)}
        name, given = next((keys[key] for key in _PATHS if key in keys), None), keys.get("info_path")
        if name and (not isinstance(name, str) or not Path(name).name):
            raise CorpusError(f"{where}: {repr(name)[:80]} is no path of a file")
        if not name:
            listed = ", ".join(map(repr, [*row][:20])) or "nothing"
            raise CorpusError(f"{where}: there is no path in it (or {', '.join(_PATHS[1:])}); it has {listed}")
        if name in found:
            raise CorpusError(f"{where}: {name} was listed before; each piece may stand there once")
        sound = path.parent / name
        if given not in (None, False) and not isinstance(given, str):
            raise CorpusError(f"{where}: info_path: expected a path, got {str(given)[:80]}")
        sidecar = path.parent / given if given else sound.with_suffix(".json")
        # False stands where a piece has none, whatever is beside it.
        sidecar = str(sidecar) if given or (given is not False and os.path.isfile(sidecar)) else None
        found[name] = _file(name, str(sound), sidecar, json.dumps(row, sort_keys=True))
    return sorted(found.values(), key=lambda source: source.name)


def _content(path: Path) -> str:
    """The text of a manifest."""
    content = files.read_bytes(path, files.LARGEST_TEXT, CorpusError)
    if path.suffix.lower() == ".gz":
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(files.LARGEST_TEXT + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise CorpusError(f"{path}: is no manifest that can be read ({error})") from error
        if len(content) > files.LARGEST_TEXT:
            raise CorpusError(f"{path}: unpacks to more than {files.LARGEST_TEXT >> 20} MiB; make several of it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"{path}, line {line}: is not text in UTF-8; save it as that") from None


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    header = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count))
    try:
        twice = [name for name, count in Counter(rows.fieldnames or ()).items() if count > 1]
        if twice:
            raise CorpusError(f"{path}: several columns are called {twice[0]!r}; give each a name of its own")
        for row in rows:
            if any(row.pop(None, ())):
                raise CorpusError(
                    f"{path}, line {rows.line_num}: has more cells than there are columns; put a text that holds the "
                    f"separator {rows.reader.dialect.delimiter!r} into double quotes"
                )
            if any(row.values()):
                yield rows.line_num, row
    except csv.Error as error:
        raise CorpusError(f"{path}, line {rows.line_num + 1}: is no manifest that can be read ({error})") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = files.parse_json(line, f"{path}, line {number}", CorpusError, halves=True)
            yield number, row if isinstance(row, dict) else {}
