"""Sources of corpora: folders of sound files, manifests, and datasets of tensorflow-datasets."""

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
from collections.abc import Iterator, Sequence
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
from mgjax.storage import buckets, paths

# Of formats that libsndfile reads.
SUFFIXES = (
    *(".wav", ".wave", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc"),
    *(".caf", ".au", ".snd", ".voc", ".avr", ".nist", ".sph", ".sf", ".ircam", ".paf", ".pvf", ".svx", ".8svx"),
)
# Of formats that it does not read: such pieces are listed in the report as left out.
UNREADABLE = (
    *(".m4a", ".m4b", ".mp4", ".aac", ".ac3", ".wma", ".webm", ".weba", ".mka", ".amr", ".ape", ".wv", ".tta"),
    *(".mpc", ".dsf", ".dff", ".3gp", ".ra"),
)
MANIFESTS = (".csv", ".tsv", ".jsonl", ".jsonl.gz")
_PATHS = ("path", "file_name", "filename", "file", "audio")  # keys of a manifest for the path
_BLOCK_SECONDS = 10.0
_LONGEST_PATH = 4096  # characters


@dataclasses.dataclass(frozen=True)
class FileSource:
    """A sound file."""

    name: str  # a unique one: its path relative to the folder, or as in the manifest
    path: str  # absolute
    sidecar: str | None = None  # the path of the JSON file with its metadata
    row: str | None = None  # the JSON of its row in the manifest, which takes precedence over the sidecar
    # Sizes and modification times (of objects, versions) of both files, by which changes are detected.
    stamp: tuple[int | str, ...] = ()

    def metadata(self, unused: list[str] | None = None) -> Metadata:
        """The metadata of the sidecar and the row; unknown keys are added to `unused`.

        Raises MetadataError if they cannot be parsed, OSError if the sidecar cannot be read.
        """
        fields: dict[str, Any] = {}
        unknown: list[str] = []
        if self.sidecar is not None:
            content = files.read_bytes(_regular(self.sidecar))
            fields = Metadata.from_json(content, os.path.basename(self.sidecar), unknown).to_dict()
        if self.row is not None:
            fields |= Metadata.from_json(self.row, "manifest", unknown).to_dict()
        if unused is not None:
            unused += [key for key in unknown if key not in (*_PATHS, "info_path")]
        return Metadata.from_dict(fields)

    def blocks(self, sample_rate: int, channels: int) -> Iterator[Float32[np.ndarray, "n c"]]:
        """Streams the audio, converted to `sample_rate` in hertz and `channels`; raises as `audio.files.blocks`."""
        suffix = os.path.splitext(self.path)[1].lower()
        if suffix in UNREADABLE:
            raise ValueError(f"{suffix} cannot be read here; convert it to .wav or .flac")
        # The build reports clipping itself, once for all pieces.
        yield from audio_files.blocks(_regular(self.path), _BLOCK_SECONDS, sample_rate, channels, warned={"loud"})


Source = FileSource | DatasetSource


def find(source: str | os.PathLike[str], fields: Fields | None = None) -> list[Source]:
    """All pieces of `source`, in a fixed order.

    It is a folder of sound files, each with or without a JSON sidecar of the same stem (links are followed, and each
    folder is read once); a manifest (.csv, .tsv, .jsonl or .jsonl.gz, such as audiocraft's data.jsonl.gz) with a column
    or key `path`, relative to the manifest, and the fields of `Metadata`; or a prepared dataset of tensorflow-datasets,
    as for `datasets.find`, with the features `fields`.

    Raises:
      FileNotFoundError: There is no such source.
      CorpusError: There is no music in it, or the manifest cannot be parsed.
    """
    text = os.fspath(source)
    pieces: Sequence[Source]
    if text.startswith("tfds:") or paths.size(paths.path(text, "dataset_info.json")) is not None:
        pieces = datasets.find(text, fields)
    elif fields is not None:
        raise CorpusError(f"{text}: is no dataset of tensorflow-datasets, so it has no features to choose from")
    elif paths.path(text).is_dir():
        pieces = _find_objects(text) if paths.is_remote(text) else _find_files(Path(text))
    elif text.lower().endswith(MANIFESTS):
        pieces = _read_manifest(paths.path(text))
        if not pieces:
            table = " a line of the names of its columns and then" * (not text.lower().endswith((".jsonl", ".gz")))
            raise CorpusError(f"{text}: there is no piece in it; expected{table} a line for each piece")
    else:
        raise FileNotFoundError(
            f"{text}: expected a folder of sound files, a manifest ({', '.join(MANIFESTS)}) or tfds:NAME"
        )
    if not pieces:
        raise CorpusError(f"{text}: there is no music in it; looked for {', '.join(SUFFIXES)}")
    return list(pieces)


def _find_files(folder: Path) -> list[FileSource]:
    sources, seen, roots = [], set(), [str(folder)]

    def unreadable(error: OSError) -> None:  # a folder, which the report is to list
        sources.append(_file(os.path.relpath(error.filename, folder), error.filename, None))

    for root in roots:  # grows by links to folders, which come last so that a folder's own path is preferred
        for parent, folders, names in os.walk(root, onerror=unreadable):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            roots += [link for name in folders if os.path.islink(link := os.path.join(parent, name))]
            present = set(names)
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in (*SUFFIXES, *UNREADABLE) and not name.startswith("."):
                    path = Path(parent, name)
                    sidecar = str(Path(parent, f"{stem}.json")) if f"{stem}.json" in present else None
                    sources.append(_file(path.relative_to(folder).as_posix(), str(path.absolute()), sidecar))
    # A link to another piece is a duplicate, and could come into the other split.
    paths = {source.path for source in sources}
    unique = [file for file in sources if not os.path.islink(file.path) or os.path.realpath(file.path) not in paths]
    return sorted(unique, key=lambda source: source.name)


def _find_objects(folder: str) -> list[FileSource]:
    """As `_find_files`, of a folder in a bucket."""
    prefix = paths.absolute(folder) + "/"
    found = {address.removeprefix(prefix): item for address, item in buckets.objects(folder).items()}
    sources = []
    for name, item in found.items():
        stem, suffix = os.path.splitext(name)
        hidden = any(part.startswith(".") for part in name.split("/"))
        if suffix.lower() in (*SUFFIXES, *UNREADABLE) and not hidden:
            described = found.get(f"{stem}.json")
            stamp = (item.size, item.version) + (() if described is None else (described.size, described.version))
            sidecar = None if described is None else f"{prefix}{stem}.json"
            sources.append(FileSource(escaped(name), prefix + name, sidecar, None, stamp))
    return sorted(sources, key=lambda source: source.name)


def _regular(path: str) -> str:
    """`path`; raises OSError unless it is a regular file. A worker could wait for others, such as pipes, for ever."""
    if paths.is_remote(path):
        return path
    if len(path) > _LONGEST_PATH:
        raise OSError(f"{path[:200]}...: is too long for the path of a file")
    try:
        mode = os.stat(path).st_mode
    except ValueError as wrong:  # a lone surrogate, or NUL
        raise OSError(f"{escaped(path)}: is no name of a file ({wrong!s:.200})") from None
    if not stat.S_ISREG(mode):
        raise OSError(f"{path}: is no file, or a folder that cannot be read")
    return path


def _file(name: str, path: str, sidecar: str | None, row: str | None = None) -> FileSource:
    stamp: list[int | str] = []
    for file in filter(None, (path, sidecar)):
        try:
            if paths.is_remote(file):
                stamp.append(buckets.version(file) or -1)
            else:
                state = os.stat(file)
                stamp += [state.st_size, state.st_mtime_ns]
        except (OSError, ValueError):  # the report will list it
            stamp.append(-1)
    sidecar = None if sidecar is None else paths.absolute(sidecar)
    return FileSource(escaped(name), paths.absolute(path), sidecar, row, tuple(stamp))


def _read_manifest(path: paths.Path) -> list[FileSource]:
    read_rows = _json_rows if path.name.lower().endswith((".jsonl", ".gz")) else _csv_rows
    sources: dict[str, FileSource] = {}
    for number, row in read_rows(path, _content(path)):
        where, values = f"{path}, line {number}", {key.strip().lower(): row[key] for key in reversed(row)}
        name, info_path = next((values[key] for key in _PATHS if key in values), None), values.get("info_path")
        if name and (not isinstance(name, str) or not Path(name).name):
            raise CorpusError(f"{where}: {repr(name)[:80]} is no path of a file")
        if not name:
            listed = ", ".join(map(repr, [*row][:20])) or "nothing"
            raise CorpusError(f"{where}: there is no path in it (or {', '.join(_PATHS[1:])}); it has {listed}")
        if name in sources:
            raise CorpusError(f"{where}: {name} was listed before; each piece may stand there once")
        if info_path not in (None, False) and not isinstance(info_path, str):
            raise CorpusError(f"{where}: info_path: expected a path, got {str(info_path)[:80]}")
        audio = _beside(path, name)
        sidecar = _beside(path, info_path) if info_path else audio.with_suffix(".json")
        # False means no sidecar, even if there is such a file.
        has_sidecar = bool(info_path) or (info_path is not False and paths.size(sidecar) is not None)
        row_json = json.dumps(row, sort_keys=True)
        sources[name] = _file(name, str(audio), str(sidecar) if has_sidecar else None, row_json)
    return sorted(sources.values(), key=lambda source: source.name)


def _beside(manifest: paths.Path, name: str) -> paths.Path:
    """The path that a manifest gives: an address, an absolute path, or one relative to the manifest."""
    return paths.path(name) if paths.is_remote(name) else manifest.parent / name


def _content(path: paths.Path) -> str:
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


def _csv_rows(path: paths.Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    header = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count))
    try:
        repeated = [name for name, count in Counter(rows.fieldnames or ()).items() if count > 1]
        if repeated:
            raise CorpusError(f"{path}: several columns are called {repeated[0]!r}; give each a name of its own")
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


def _json_rows(path: paths.Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = files.parse_json(line, f"{path}, line {number}", CorpusError, halves=True)
            yield number, row if isinstance(row, dict) else {}
