"""Makes a corpus shard by shard, in one process or many, or as an Apache Beam pipeline.

The split, shard and position of every piece are planned first, and a job is a shard. A worker writes the shard and a
summary of it, each atomically. So the corpus does not depend on the number of workers, a shard
that is made twice has the same bytes, and an interrupted run goes on: a summary holds the hash of the sources and
settings of its shard.

All workers read the sources and write the corpus by its path; several machines need a shared file system, or a bucket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from mgjax.audio.metadata import escaped
from mgjax.config.serialization import from_dict
from mgjax.data import corpus_writing, processes
from mgjax.data.corpus_writing import Piece, Shard
from mgjax.data.description import SPLITS, Description, read_description, shard_path
from mgjax.errors import ConfigError, CorpusError
from mgjax.inputs import claims, files
from mgjax.storage import paths
from mgjax.storage.paths import Path

log = logging.getLogger("mgjax")

Progress = Callable[[int, int], None]  # pieces done, pieces in all

_POLL_SECONDS = 0.5

# The files in the folder of a corpus, first the one that marks it as finished; and those in its folder `unfinished`.
_FILES = (
    *("corpus.json", "index-train.npz", "index-valid.npz", "mgjax_*.array_record-*", "dataset_info.json"),
    *("features.json", "report.json"),
)
_WORK = ("plan.json", "train-*.json", "valid-*.json", "*.progress", "workers.log")


class BadPiece(ValueError):
    """A source that cannot be used; the message is the reason in the report."""


class Notes(dict[str, tuple[int, str]]):
    """Warnings about pieces: for each kind, the number of pieces and the name of the first."""

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Counts `count` more pieces with a warning, of which `name` is the first."""
        before, first = self.get(kind, (0, name))
        self[kind] = (before + count, first)

    def warn(self) -> None:
        """Logs all of them in one line."""
        lines = [f"{kind} ({count}x, first in {name})" for kind, (count, name) in self.items()]
        if lines:
            log.warning("%s%s", "; ".join(lines[:12]), f"; and {len(lines) - 12} more" if len(lines) > 12 else "")


@runtime_checkable
class Maker(Protocol):
    """Makes pieces out of sources; it is pickled and sent to the workers."""

    def open(self, source: Any, scratch: pathlib.Path) -> contextlib.AbstractContextManager[Piece]:
        """The piece made of `source`, with temporary files in the folder `scratch`.

        Raises BadPiece if the source cannot be used.
        """


@dataclasses.dataclass(frozen=True)
class Plan:
    """A corpus to be made."""

    description: Description
    maker: Maker
    shards: Mapping[str, Sequence[Sequence[Any]]]  # the sources of each shard of each split; a source has a `name`
    settings: Any  # JSON values: everything apart from the sources that the bytes of the corpus depend on
    # JSON values: all arguments. An unfinished corpus of the same request goes on although sources have changed, and
    # keeps the shards of unchanged ones. None: it goes on with the same sources only.
    request: Any = None

    @functools.cached_property
    def hash(self) -> str:
        """A hash of description, settings and sources, of twelve hexadecimal digits."""
        sources = {split: [list(map(repr, shard)) for shard in self.shards[split]] for split in SPLITS}
        return _hash([dataclasses.asdict(self.description), self.settings, sources])

    def jobs(self) -> list[Job]:
        """A job for each shard."""
        settings, jobs = _hash([dataclasses.asdict(self.description), self.settings]), []
        for split in SPLITS:
            for shard, sources in enumerate(self.shards[split]):
                path = shard_path("", self.description.kind, split, shard, len(self.shards[split]))
                digest = _hash([settings, *map(repr, sources)])
                jobs.append(Job(split, f"{split}-{shard:05d}", path, tuple(sources), digest))
        return jobs


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard to be made."""

    split: str
    label: str  # the stem of the names of its temporary files, "train-00000"
    path: Path  # in the folder of the corpus
    sources: tuple[Any, ...]
    hash: str  # of its sources and of the settings


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a build: pieces and seconds in each split, (name, reason) of skipped sources, and `Notes`."""

    pieces: dict[str, int]
    seconds: dict[str, float]
    skipped: tuple[tuple[str, str], ...]
    notes: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)


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
    """Makes the corpus in `directory`; report.json in it holds the returned report.

    An interrupted build is continued if it has the same settings, and the same sources or request. With several
    workers on this machine, a worker that dies is replaced, and finished shards are kept.

    Args:
      directory: The folder of the corpus, which is created if missing.
      plan: The corpus to make.
      workers: Processes on this machine; 1 is this one. Scripts with more need `if __name__ == "__main__"`, as for any
        use of multiprocessing.
      max_bad: The largest share of sources that may be skipped.
      replace: Whether to remove an existing corpus, finished or not, first.
      beam_options: Options of Beam, such as "--runner=FlinkRunner", that choose where to run, instead of `workers`.
      progress: Called now and then with the number of finished pieces, and of all.

    Raises:
      CorpusError: Too many sources cannot be used, or workers die repeatedly.
      FileExistsError: There is something else in `directory`, or another run is at work in it.
    """
    check_free(directory)
    with claims.claimed(directory):
        if _finished(directory, plan, replace):
            return _read_report(directory)
        work = directory / "unfinished"
        paths.make_folder(work)
        content = json.dumps({"hash": plan.hash, "request": plan.request})
        if not files.create(work / "plan.json", content):
            _finished(directory, plan, replace=False)  # raises where another run in this bucket was first
            files.write_text(work / "plan.json", content)
        jobs = plan.jobs()
        with _local(work) as scratch, _reporting(scratch, sum(len(job.sources) for job in jobs), progress):
            make = functools.partial(_make_shard, directory, scratch, plan.description, plan.maker)

            def missing() -> list[Job]:
                sizes, summaries = paths.sizes(directory), paths.sizes(work)
                return [job for job in jobs if _summary(directory, job, sizes, summaries) is None]

            if beam_options or workers == 1:
                processes.run(make, missing(), beam_options)
            else:
                processes.run_apart(make, missing, workers, scratch / "workers.log")
        return _finish(directory, plan, jobs, max_bad)


@contextlib.contextmanager
def _local(work: Path) -> Iterator[pathlib.Path]:
    """A local folder for temporary files: `work` itself, unless it is in a bucket."""
    if isinstance(work, pathlib.Path):
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="mgjax-") as scratch:
        yield pathlib.Path(scratch)


def check_free(directory: Path) -> None:
    """Raises FileExistsError unless `directory` is a corpus, finished or not, or empty, or missing."""
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
    """Whether `directory` holds the corpus of `plan` already. If not, checks that it can be made there.

    Raises FileExistsError if there is another corpus, finished or not.
    """
    unfinished, report = directory / "unfinished" / "plan.json", directory / "report.json"
    if replace:
        _clear(directory / "unfinished", _WORK)
        _clear(directory, _FILES)
    elif unfinished.is_file():
        stored = _read(unfinished)
        if stored["hash"] != plan.hash and (plan.request is None or stored.get("request") != plan.request):
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
    """Removes files that match `patterns`, and the temporary files of killed workers."""
    for pattern in patterns:
        for path in [*folder.glob(pattern), *folder.glob(f".{pattern}.*.tmp")]:
            path.unlink()


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file of this module, which has a hash; CorpusError where it is another file."""
    content = files.read_json(path, files.LARGEST_TEXT, CorpusError)
    if not isinstance(content, dict) or "hash" not in content:
        raise CorpusError(f"{path}: is damaged, or not of mgjax")
    return content


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _make_shard(directory: Path, scratch: pathlib.Path, description: Description, maker: Maker, job: Job) -> None:
    """Makes a shard and its summary; runs on a worker, with the folder `scratch` for temporary files."""
    directory = paths.path(directory)  # a worker of its own knows no buckets yet
    scratch.mkdir(exist_ok=True)  # on another machine
    work = directory / "unfinished"
    skipped, notes = [], Notes()

    def pieces() -> Iterator[Piece]:
        with (scratch / f"{job.label}.progress").open("wb", buffering=0) as progress:
            for source in job.sources:
                try:
                    with maker.open(source, scratch) as piece:
                        for note in piece.notes:
                            notes.add(note, piece.name)
                        yield piece
                except BadPiece as error:
                    skipped.append([source.name, str(error)])
                progress.write(b".")

    shard = corpus_writing.write_shard(directory / job.path, description, pieces())
    summary = {**shard._asdict(), "skipped": skipped, "notes": notes}
    files.write_json(work / f"{job.label}.json", {**summary, "hash": _hash([job.hash, summary])})


def _summary(directory: Path, job: Job, sizes: Mapping[str, int], summaries: Collection[str]) -> dict[str, Any] | None:
    """The summary of a finished shard; None if it has yet to be made, or was made of other sources.

    `sizes` are those of the files in `directory`, and `summaries` the names of those in its folder "unfinished".
    """
    name, size = f"{job.label}.json", sizes.get(job.path.name)
    if size is None or name not in summaries:
        return None
    try:
        summary = _read(directory / "unfinished" / name)
    except CorpusError:
        return None
    return summary if summary.pop("hash") == _hash([job.hash, summary]) and summary["num_bytes"] == size else None


def _finish(directory: Path, plan: Plan, jobs: Sequence[Job], max_bad: float) -> Report:
    """Makes a corpus of the finished shards."""
    work = directory / "unfinished"
    sizes, summaries = paths.sizes(directory), paths.sizes(work)
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    skipped, notes = [], Notes()
    for job in jobs:
        summary = _summary(directory, job, sizes, summaries)
        if summary is None:
            raise CorpusError(f"{directory / job.path}: is gone; run it again")
        shards[job.split].append(Shard(summary["lengths"], summary["num_bytes"], summary.get("digest")))
        skipped += [(name, reason) for name, reason in summary["skipped"]]
        for kind, (count, name) in summary["notes"].items():
            notes.add(kind, name, count)
    rate = plan.description.frame_rate or plan.description.sample_rate
    lengths = {split: [length for shard in shards[split] for length in shard.lengths] for split in SPLITS}
    report = Report(
        {split: len(lengths[split]) for split in SPLITS},
        {split: sum(lengths[split]) / rate for split in SPLITS},
        tuple(skipped),
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
    used = {directory / job.path for job in jobs if report.pieces[job.split]}
    # Others are of empty splits, of killed workers, and of sources that are gone.
    for path in {*directory.glob("mgjax_*.array_record-*"), *directory.glob(".mgjax_*.tmp")} - used:
        path.unlink()
    _clear(work, _WORK)
    if isinstance(work, pathlib.Path):  # in a bucket there are no folders
        with contextlib.suppress(OSError):  # something else is in it
            work.rmdir()
    notes.warn()
    return report


def _read_report(directory: Path) -> Report:
    content = _read(directory / "report.json")
    try:
        return from_dict(Report, {name: content[name] for name in content if name not in ("hash", "settings")})
    except ConfigError as error:
        raise CorpusError(f"{directory / 'report.json'}: is damaged; make the corpus anew (--force)") from error


@contextlib.contextmanager
def _reporting(scratch: pathlib.Path, total: int, progress: Progress | None) -> Iterator[None]:
    """Calls `progress` with the number of pieces that workers, on any machine, have marked as done."""
    if progress is None:
        yield
        return
    done = threading.Event()

    def report() -> None:
        progress(sum(path.stat().st_size for path in scratch.glob("*.progress")), total)

    def poll() -> None:
        while not done.wait(_POLL_SECONDS):
            report()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
        report()
    finally:
        done.set()
        thread.join()
