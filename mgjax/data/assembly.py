"""Making a corpus shard by shard, as an Apache Beam pipeline.

Every piece has its place (split, shard, position) before anything is made, and one element of the pipeline is one
shard. A worker writes the shard and what is known of it (its part) under temporary names and renames them. So the
corpus does not depend on the number of workers, a shard that is made twice is the same shard, and what was finished
before an interruption is kept: a part says of which sources and settings its shard is.

All workers read the sources and write the corpus by its path: on several machines it lies on a file system that they
share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mgjax.audio.metadata import escaped
from mgjax.data import corpus_writing, processes
from mgjax.data.corpus import SPLITS, Description, read_description, shard_path
from mgjax.data.corpus_writing import Piece, Shard
from mgjax.errors import CorpusError
from mgjax.inputs import claims, files

log = logging.getLogger("mgjax")

Progress = Callable[[int, int], None]  # pieces done, pieces in all

_POLL_SECONDS = 0.5

# What is written into the folder of a corpus, first what says that it is one, and into `unfinished` in it.
_FILES = (
    *("corpus.json", "index-train.npz", "index-valid.npz", "mgjax_*.array_record-*", "dataset_info.json"),
    *("features.json", "report.json"),
)
_WORK = ("plan.json", "train-*.json", "valid-*.json", "*.progress", "workers.log")


class BadPiece(ValueError):
    """A piece that is left out of the corpus, and why."""


class Notes(dict[str, tuple[int, str]]):
    """What is to be said of pieces: of each kind, how many there are, and the name of the first."""

    def add(self, kind: str, name: str, count: int = 1) -> None:
        before, first = self.get(kind, (0, name))
        self[kind] = (before + count, first)

    def tell(self) -> None:
        """Logs them in one line."""
        said = [f"{kind} ({count}x, first in {name})" for kind, (count, name) in self.items()]
        if said:
            log.warning("%s%s", "; ".join(said[:12]), f"; and {len(said) - 12} more" if len(said) > 12 else "")


@runtime_checkable
class Maker(Protocol):
    """Makes pieces out of sources; it is sent to the workers."""

    def open(self, source: Any, scratch: Path) -> contextlib.AbstractContextManager[Piece]:
        """The piece made of `source`, with room for temporary files in the folder `scratch`.

        Raises:
          BadPiece: It cannot be used.
        """


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be made.

    Attributes:
      description: Of the corpus.
      maker: Makes the pieces.
      shards: The sources of each shard of each split. A source has a `name`.
      settings: What the bytes of the corpus depend on, and nothing else, as JSON knows it.
      request: All that was asked for, as JSON knows it: an unfinished corpus of the same request goes on though sources
        have changed, and keeps the shards of those that have not. None: it goes on with the same sources alone.
    """

    description: Description
    maker: Maker
    shards: Mapping[str, Sequence[Sequence[Any]]]
    settings: Any
    request: Any = None

    @functools.cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that tell what is made from what."""
        content = [dataclasses.asdict(self.description), self.settings]
        content.append({split: [[repr(source) for source in some] for some in self.shards[split]] for split in SPLITS})
        return _hash(content)

    def jobs(self) -> list[Job]:
        """One for each shard."""
        made = _hash([dataclasses.asdict(self.description), self.settings])
        return [
            Job(split, shard, len(self.shards[split]), tuple(sources), _hash([made, *map(repr, sources)]))
            for split in SPLITS
            for shard, sources in enumerate(self.shards[split])
        ]


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard to be made."""

    split: str
    shard: int
    num_shards: int
    sources: tuple[Any, ...]
    hash: str  # of its sources and of the settings

    @property
    def label(self) -> str:
        return f"{self.split}-{self.shard:05d}"

    def path(self, directory: Path, description: Description) -> Path:
        return shard_path(directory, description.kind, self.split, self.shard, self.num_shards)


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the sources: pieces and seconds in each split, (name, reason) of those that were skipped, and what
    else is to be said, see `Notes`."""

    pieces: Mapping[str, int]
    seconds: Mapping[str, float]
    skipped: tuple[tuple[str, str], ...]
    notes: Mapping[str, tuple[int, str]] = dataclasses.field(default_factory=dict)


def assemble(
    directory: Path,
    plan: Plan,
    *,
    workers: int = 1,
    max_bad: float = 0.05,
    replace: bool = False,
    beam_options: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Makes the corpus in `directory` and says what became of the sources; report.json in it says the same.

    A build that was interrupted is continued, if it was of the same sources or request, with the same settings. With
    several workers on this machine, a worker that dies is replaced, and the shards that were finished stay.

    Args:
      directory: Where to; made if missing.
      plan: What to make.
      workers: Processes on this machine; 1 is this one.
      max_bad: The largest share of sources that may be skipped.
      replace: Whether a corpus, or an unfinished one, that is there already is removed first.
      beam_options: Options of Beam, such as "--runner=FlinkRunner", that say where to run; `workers` is then unused.
      progress: Is told now and then how much is done.

    Raises:
      CorpusError: Too many sources cannot be used, or workers die again and again.
      FileExistsError: There is something else in `directory`, or another run is at work in it.
    """
    check_free(directory)
    with claims.claimed(directory):
        if _finished(directory, plan, replace):
            return _read_report(directory)
        work = directory / "unfinished"
        work.mkdir(exist_ok=True)
        files.write_json(work / "plan.json", {"hash": plan.hash, "request": plan.request})
        jobs = plan.jobs()
        with _reporting(work, sum(len(job.sources) for job in jobs), progress):
            make = functools.partial(_make_shard, directory, plan.description, plan.maker)

            def missing() -> list[Job]:
                return [job for job in jobs if _part(directory, plan.description, job) is None]

            if beam_options or workers == 1:
                processes.run(make, missing(), beam_options)
            else:
                processes.run_apart(make, missing, workers, work / "workers.log")
        return _finish(directory, plan, jobs, max_bad)


def check_free(directory: Path) -> None:
    """Raises FileExistsError unless `directory` is a corpus, finished or not, or empty, or not there."""
    try:
        if str(directory) != (name := escaped(str(directory))):
            raise CorpusError(f"{name}: is not a name in UTF-8")
        if (directory / "unfinished" / "plan.json").is_file():
            _read(directory / "unfinished" / "plan.json")
        elif (directory / "corpus.json").is_file():
            read_description(directory)
        elif directory.exists() and any(path.name != claims.NAME for path in directory.iterdir()):
            raise CorpusError(f"{directory}: is not empty and holds no corpus")
    except CorpusError as error:
        raise FileExistsError(f"{error}; choose another folder") from error


def _finished(directory: Path, plan: Plan, replace: bool) -> bool:
    """Whether `directory` holds this very corpus already; if it does not, makes sure that it can be made there."""
    begun, report = directory / "unfinished" / "plan.json", directory / "report.json"
    if replace:
        _clear(directory / "unfinished", _WORK)
        _clear(directory, _FILES)
    elif begun.is_file():
        theirs = _read(begun)
        if theirs["hash"] != plan.hash and (plan.request is None or theirs.get("request") != plan.request):
            raise FileExistsError(
                f"{directory}: holds an unfinished corpus of other sources or settings; finish that one, choose "
                "another folder, or replace it (--force)"
            )
    elif (directory / "corpus.json").is_file():
        if not report.is_file() or _read(report)["hash"] != plan.hash:
            raise FileExistsError(
                f"{directory}: holds a corpus of other sources or settings; choose another folder, or replace it "
                "(--force)"
            )
        return True
    return False


def _clear(folder: Path, patterns: Sequence[str]) -> None:
    """Removes files that were written here, and what workers left of them that were killed."""
    for pattern in patterns:
        for path in [*folder.glob(pattern), *folder.glob(f".{pattern}.*.tmp")]:
            path.unlink()


def _read(path: Path) -> dict[str, Any]:
    """What a file with a hash says that was written here; CorpusError where it is another."""
    found = files.read_json(path, files.LARGEST_TEXT, CorpusError)
    if not isinstance(found, dict) or "hash" not in found:
        raise CorpusError(f"{path}: is damaged, or not of mgjax")
    return found


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _make_shard(directory: Path, description: Description, maker: Maker, job: Job) -> None:
    """Makes one shard and its part; runs on a worker."""
    work = directory / "unfinished"
    skipped, notes = [], Notes()

    def pieces() -> Iterator[Piece]:
        with (work / f"{job.label}.progress").open("wb", buffering=0) as progress:
            for source in job.sources:
                try:
                    with maker.open(source, work) as piece:
                        for note in piece.notes:
                            notes.add(note, piece.name)
                        yield piece
                except BadPiece as error:
                    skipped.append([source.name, str(error)])
                progress.write(b".")

    shard = corpus_writing.write_shard(job.path(directory, description), description, pieces())
    part = {**shard._asdict(), "skipped": skipped, "notes": notes}
    files.write_json(work / f"{job.label}.json", {**part, "hash": _hash([job.hash, part])})


def _part(directory: Path, description: Description, job: Job) -> dict[str, Any] | None:
    """What is known of a shard; None where it has yet to be made, of these sources."""
    try:
        part = _read(directory / "unfinished" / f"{job.label}.json")
        size = job.path(directory, description).stat().st_size
    except (OSError, CorpusError):
        return None
    return part if part.pop("hash") == _hash([job.hash, part]) and part["num_bytes"] == size else None


def _finish(directory: Path, plan: Plan, jobs: Sequence[Job], max_bad: float) -> Report:
    """Makes a corpus of the shards, which are all there."""
    work = directory / "unfinished"
    parts = [_part(directory, plan.description, job) for job in jobs]
    notes = Notes()
    for part in parts:
        for kind, (count, name) in part["notes"].items():
            notes.add(kind, name, count)
    shards = {
        split: [
            Shard(part["lengths"], part["num_bytes"], part.get("digest"))
            for job, part in zip(jobs, parts, strict=True)
            if job.split == split
        ]
        for split in SPLITS
    }
    rate = plan.description.frame_rate or plan.description.sample_rate
    lengths = {split: [length for shard in some for length in shard.lengths] for split, some in shards.items()}
    report = Report(
        {split: len(some) for split, some in lengths.items()},
        {split: sum(some) / rate for split, some in lengths.items()},
        tuple((name, reason) for part in parts for name, reason in part["skipped"]),
        notes,
    )
    content = {"hash": plan.hash, "settings": plan.settings, **dataclasses.asdict(report)}
    files.write_text(directory / "report.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    total = sum(len(job.sources) for job in jobs)
    if len(report.skipped) > max_bad * total:
        name, reason = report.skipped[0]
        raise CorpusError(
            f"{len(report.skipped)} of {total} pieces cannot be used, more than the share of {max_bad:g} that is "
            f"allowed; the first is {name}: {reason}. All are listed in {directory / 'report.json'}. Mend or remove "
            "them, or allow more (--max-bad), and run it again: what is done is kept, where its pieces stay"
        )
    corpus_writing.finish(directory, plan.description, shards)
    kept = {job.path(directory, plan.description) for job in jobs if report.pieces[job.split]}
    # Others are of empty splits, of workers that were killed, and of sources that are gone.
    for path in {*directory.glob("mgjax_*.array_record-*"), *directory.glob(".mgjax_*.tmp")} - kept:
        path.unlink()
    _clear(work, _WORK)
    with contextlib.suppress(OSError):  # something else is in it
        work.rmdir()
    notes.tell()
    return report


def _read_report(directory: Path) -> Report:
    content = _read(directory / "report.json")
    try:
        skipped = tuple((name, reason) for name, reason in content["skipped"])
        notes = {kind: (count, name) for kind, (count, name) in dict(content.get("notes", {})).items()}
        return Report(dict(content["pieces"]), dict(content["seconds"]), skipped, notes)
    except (KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{directory / 'report.json'}: is damaged; make the corpus anew (--force)") from error


@contextlib.contextmanager
def _reporting(work: Path, total: int, progress: Progress | None) -> Iterator[None]:
    """Tells `progress` of the pieces that workers, wherever they are, have marked as done."""
    if progress is None:
        yield
        return
    over = threading.Event()

    def tell() -> None:
        progress(sum(path.stat().st_size for path in work.glob("*.progress")), total)

    def watch() -> None:
        while not over.wait(_POLL_SECONDS):
            tell()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        tell()
    finally:
        over.set()
        thread.join()
