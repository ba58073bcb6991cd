"""Making a corpus shard by shard, as an Apache Beam pipeline.

Every piece has its place (split, shard, position) before anything is made, and one element of the pipeline is one
shard. A worker writes the shard and what is known of it (its part) under temporary names and renames them. So the
corpus does not depend on the number of workers, a shard that is made twice is the same shard, and what was finished
before an interruption is kept.

All workers read the sources and write the corpus by its path: on several machines it lies on a file system that they
share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mgjax.data import corpus_writing, processes
from mgjax.data.corpus import SPLITS, CorpusError, Description, shard_path
from mgjax.data.corpus_writing import Piece, Shard, replacing

Progress = Callable[[int, int], None]  # pieces done, pieces in all

_POLL_SECONDS = 0.5


class BadPiece(ValueError):
    """A piece that is left out of the corpus, and why."""


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
    """

    description: Description
    maker: Maker
    shards: Mapping[str, Sequence[Sequence[Any]]]
    settings: Any

    @functools.cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that tell what is made from what."""
        content = [dataclasses.asdict(self.description), self.settings]
        content.append({split: [[repr(source) for source in some] for some in self.shards[split]] for split in SPLITS})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def jobs(self) -> list[Job]:
        """One for each shard."""
        return [
            Job(split, shard, len(self.shards[split]), tuple(sources))
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

    @property
    def label(self) -> str:
        return f"{self.split}-{self.shard:05d}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the sources: pieces and seconds in each split, and (name, reason) of those that were skipped."""

    pieces: Mapping[str, int]
    seconds: Mapping[str, float]
    skipped: tuple[tuple[str, str], ...]


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

    A build that was interrupted is continued, if it was of the same sources with the same settings. With several
    workers on this machine, a worker that dies is replaced, and the shards that were finished stay.

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
      FileExistsError: There is something else in `directory`.
    """
    if _finished(directory, plan, replace):
        return _read_report(directory)
    work = directory / "unfinished"
    work.mkdir(parents=True, exist_ok=True)
    with replacing(work / "plan.json") as file:
        file.write(json.dumps({"hash": plan.hash}).encode())
    jobs = plan.jobs()
    with _reporting(work, sum(len(job.sources) for job in jobs), progress):
        make = functools.partial(_make_shard, directory, plan.description, plan.maker)
        if beam_options or workers == 1:
            processes.run(make, _missing(work, jobs), beam_options)
        else:
            processes.run_apart(make, lambda: _missing(work, jobs), workers, work / "workers.log")
    return _finish(directory, plan, jobs, max_bad)


def _finished(directory: Path, plan: Plan, replace: bool) -> bool:
    """Whether `directory` holds this very corpus already; if it does not, makes sure that it can be made there."""
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise FileExistsError(f"{directory}: is a file; choose another name for the corpus")
    work = directory / "unfinished"
    finished, begun = directory / "corpus.json", work / "plan.json"
    ours = finished.is_file() or begun.is_file() or not any(directory.iterdir())
    if not ours:
        raise FileExistsError(f"{directory}: is not empty and holds no corpus; choose another folder")
    if replace:
        _clear(directory)
        return False
    if begun.is_file():
        if json.loads(begun.read_bytes())["hash"] != plan.hash:
            raise FileExistsError(
                f"{directory}: holds an unfinished corpus of other sources or settings; finish that one, choose "
                "another folder, or replace it (--force)"
            )
        return False
    if finished.is_file():
        report = directory / "report.json"
        if not report.is_file() or json.loads(report.read_bytes())["hash"] != plan.hash:
            raise FileExistsError(
                f"{directory}: holds a corpus of other sources or settings; choose another folder, or replace it "
                "(--force)"
            )
        return True
    return False


def _clear(directory: Path) -> None:
    """Removes a corpus, and nothing else that may be there; what says that it is one goes first."""
    (directory / "corpus.json").unlink(missing_ok=True)
    shutil.rmtree(directory / "unfinished", ignore_errors=True)
    for pattern in ("mgjax_*.array_record-*", ".*.tmp", "index-*.npz"):
        for path in directory.glob(pattern):
            path.unlink()
    for name in ("dataset_info.json", "features.json", "report.json"):
        (directory / name).unlink(missing_ok=True)


def _make_shard(directory: Path, description: Description, maker: Maker, job: Job) -> None:
    """Makes one shard and its part; runs on a worker."""
    work = directory / "unfinished"
    skipped = []

    def pieces() -> Iterator[Piece]:
        with (work / f"{job.label}.progress").open("wb", buffering=0) as progress:
            for source in job.sources:
                try:
                    with maker.open(source, work) as piece:
                        yield piece
                except BadPiece as error:
                    skipped.append([source.name, str(error)])
                progress.write(b".")

    path = shard_path(directory, description.kind, job.split, job.shard, job.num_shards)
    shard = corpus_writing.write_shard(path, description, pieces())
    with replacing(_part_path(work, job)) as file:
        file.write(json.dumps({**shard._asdict(), "skipped": skipped}).encode())


def _part_path(work: Path, job: Job) -> Path:
    return work / f"{job.label}.json"


def _missing(work: Path, jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if not _part_path(work, job).exists()]


def _finish(directory: Path, plan: Plan, jobs: Sequence[Job], max_bad: float) -> Report:
    """Makes a corpus of the shards, which are all there."""
    work = directory / "unfinished"
    parts = [json.loads(_part_path(work, job).read_bytes()) for job in jobs]
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
    )
    with replacing(directory / "report.json") as file:
        content = {"hash": plan.hash, "settings": plan.settings, **dataclasses.asdict(report)}
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    total = sum(len(job.sources) for job in jobs)
    if len(report.skipped) > max_bad * total:
        name, reason = report.skipped[0]
        raise CorpusError(
            f"{len(report.skipped)} of {total} pieces cannot be used, more than the share of {max_bad:g} that is "
            f"allowed; the first is {name}: {reason}. All are listed in {directory / 'report.json'}. Mend or remove "
            "them, or allow more (--max-bad) and run it again: what is done is kept"
        )
    corpus_writing.finish(directory, plan.description, shards)
    for path in directory.glob(".*.tmp"):  # of workers that were killed
        path.unlink()
    for split in SPLITS:
        if not report.pieces[split]:
            for path in directory.glob(f"mgjax_{plan.description.kind}-{split}.array_record-*"):
                path.unlink()
    shutil.rmtree(work)
    return report


def _read_report(directory: Path) -> Report:
    content = json.loads((directory / "report.json").read_bytes())
    return Report(content["pieces"], content["seconds"], tuple(map(tuple, content["skipped"])))


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
