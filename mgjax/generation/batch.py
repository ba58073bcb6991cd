"""Music for many prompts: made in full batches by all hosts, and written so that none is lost or made twice.

Which pieces are played together is settled by the list of them and the size of a batch alone. So every piece is the
same whatever hosts there are, and however often the work was interrupted: what is missing is made anew, batch by batch.

The folder holds `run.json`, what is made there; sound files, or the shards of a corpus of sound; `parts`, where a file
for each batch that is done says what became of its pieces; and at the end `manifest.jsonl`, all of them in order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32, Int32

from mgjax.audio import files as audio_files
from mgjax.devices import distributed
from mgjax.inputs import claims, files

log = logging.getLogger("mgjax")

# What went wrong with the machine, and would go wrong with any other piece.
_NOT_OF_A_PIECE = (MemoryError, jax.errors.JaxRuntimeError)


class Job(NamedTuple):
    """A piece to be made.

    Attributes:
      name: Of its file, and in the manifest.
      kind: Pieces of one kind are played together: of one length, above all.
      recipe: What it is made of, for `play`.
      about: The same for the manifest, as JSON can hold it.
    """

    name: str
    kind: Hashable
    recipe: Any
    about: dict[str, Any]


class Made(NamedTuple):
    """A piece: its codes, and its sound from -1 to 1."""

    codes: Int32[np.ndarray, "t k"]
    sound: Float32[np.ndarray, "n c"]


Play = Callable[[Sequence[Any]], Sequence[Made]]  # recipes of one kind -> what they are


@runtime_checkable
class Form(Protocol):
    """How pieces are written."""

    def write(self, folder: Path, number: int, count: int, pieces: Sequence[tuple[Job, Made]]) -> list[dict[str, Any]]:
        """Writes the pieces of batch `number` of `count`, each file whole or not at all; says where each is."""
        ...

    def finish(self, folder: Path, lines: Sequence[Sequence[dict[str, Any]]]) -> None:
        """Is called at the end, with what is said of the pieces of each batch."""
        ...


def make(
    jobs: Sequence[Job],
    play: Play,
    form: Form,
    folder: Path,
    size: int,
    settings: dict[str, Any],
    machine: dict[str, Any],
    progress: Callable[[list[Job], int, int], None],
) -> int:
    """Makes the pieces that `folder` does not hold yet, this process its share of them.

    Args:
      jobs: All pieces, by different names.
      play: Makes `size` of them at a time, of one kind.
      form: How they are written.
      folder: One that all hosts see.
      size: Of a batch.
      settings: What they have in common, as JSON can hold it: it may not change from one run to the next.
      machine: What they are made by, for the manifest.
      progress: Called with each batch that is done, how many of this process are done by now, and of how many.

    Returns:
      How many pieces could not be made. The manifest says why; they are tried again the next time.

    Raises:
      ValueError: The folder holds other pieces, or is not the same folder on all hosts.
      FileExistsError: Another run is at work in it.
    """
    batches, first = packed(jobs, size), jax.process_index() == 0
    with _claimed(folder, batches, settings):
        # As the first host sees it, and before any of them begins.
        missing = np.array([first and not _is_done(folder, number) for number in range(len(batches))])
        numbers = np.flatnonzero(multihost_utils.broadcast_one_to_all(missing)).tolist()
        mine, failed = numbers[jax.process_index() :: jax.process_count()], 0
        for count, number in enumerate(mine, 1):
            batch = batches[number]
            made = played(play, batch, size)
            good = [(job, found) for job, found in zip(batch, made, strict=True) if isinstance(found, Made)]
            places = iter(form.write(folder, number, len(batches), good))
            lines = [_line(job, found, places) | {"machine": machine} for job, found in zip(batch, made, strict=True)]
            _write(_part(folder, number), lines)
            failed += len(batch) - len(good)
            progress(batch, count, len(mine))
        failed = int(np.sum(multihost_utils.process_allgather(np.int32(failed))))  # when all are done
        if first:
            paths = [_part(folder, number) for number in range(len(batches))]
            distributed.wait_until(lambda: all(path.exists() for path in paths))
            parts = [_read(path) for path in paths]
            if failed < len(jobs):
                form.finish(folder, parts)
            by_name = {line["name"]: line for part in parts for line in part}
            _write(folder / "manifest.jsonl", [by_name[job.name] for job in jobs])
    return failed


def packed(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """The jobs in batches of one kind, at most `size` in each."""
    kinds = defaultdict(list)
    for job in jobs:
        kinds[job.kind].append(job)
    return [alike[start : start + size] for alike in kinds.values() for start in range(0, len(alike), size)]


def played(play: Play, batch: Sequence[Job], size: int) -> list[Made | str]:
    """What each job of a batch becomes, or what went wrong with it.

    A batch that is not full is filled up with its last job, so that `play` always makes as many.
    """
    filled = [*batch, *[batch[-1]] * (size - len(batch))]
    try:
        return list(play([job.recipe for job in filled])[: len(batch)])
    except _NOT_OF_A_PIECE:
        raise
    except Exception as error:
        if len(batch) > 1:
            return [found for job in batch for found in played(play, [job], size)]
        log.warning("%s cannot be made: %s", batch[0].name, error)
        return [f"{type(error).__name__}: {error}"]


@dataclasses.dataclass(frozen=True)
class Sounds:
    """A sound file for each piece, whose `suffix` says of what kind."""

    suffix: str
    sample_rate: int

    def write(self, folder: Path, number: int, count: int, pieces: Sequence[tuple[Job, Made]]) -> list[dict[str, Any]]:
        names = [f"{job.name}{self.suffix}" for job, _ in pieces]
        for name, (_, made) in zip(names, pieces, strict=True):
            audio_files.write(folder / name, made.sound, self.sample_rate)
        return [{"file": name} for name in names]

    def finish(self, folder: Path, lines: Sequence[Sequence[dict[str, Any]]]) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Records:
    """A corpus of sound, as `mgjax.data.corpus` reads it: a shard for each batch, the prompts as descriptions."""

    description: Any  # of the corpus

    def write(self, folder: Path, number: int, count: int, pieces: Sequence[tuple[Job, Made]]) -> list[dict[str, Any]]:
        from mgjax.audio.metadata import Metadata
        from mgjax.data import corpus, corpus_writing

        path = corpus.shard_path(folder, "audio", "train", number, count)
        content = (
            corpus_writing.Piece(job.name, Metadata(description=job.about.get("prompt") or None), [made.sound])
            for job, made in pieces
        )
        shard = corpus_writing.write_shard(path, self.description, content)
        lengths = enumerate(shard.lengths)
        return [{"file": path.name, "piece": piece, "num_samples": length} for piece, length in lengths]

    def finish(self, folder: Path, lines: Sequence[Sequence[dict[str, Any]]]) -> None:
        from mgjax.data import corpus, corpus_writing

        shards = []
        for number, part in enumerate(lines):
            path = corpus.shard_path(folder, "audio", "train", number, len(lines))
            lengths = [line["num_samples"] for line in part if "file" in line]
            shards.append(corpus_writing.Shard(lengths, path.stat().st_size))
        corpus_writing.finish(folder, self.description, {"train": shards})


@contextlib.contextmanager
def _claimed(folder: Path, batches: list[list[Job]], settings: dict[str, Any]) -> Iterator[None]:
    """Makes sure that the folder is of these pieces and of no other run, and writes down what it is of."""
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    distributed.check_shared(folder)
    listed = json.dumps([[job.name, job.about] for batch in batches for job in batch], sort_keys=True)
    settings = {**settings, "pieces": hashlib.sha256(listed.encode()).hexdigest()}
    path = folder / "run.json"
    theirs = files.read_json(path) if path.exists() else settings
    if not isinstance(theirs, dict):
        raise ValueError(f"{path}: does not say what is made in this folder; give another one")
    differing = sorted(name for name in theirs | settings if theirs.get(name) != settings.get(name))
    if differing:
        said = [f"{name} is {theirs.get(name)!r} there and {settings.get(name)!r} here" for name in differing]
        if differing == ["pieces"]:
            said = ["the prompts, or the settings of some, were others then"]
        raise ValueError(f"{folder} holds other music: {', '.join(said)}. Give another folder, or all as it was")
    if jax.process_index():
        yield
        return
    with claims.claimed(folder):
        files.write_json(path, settings)
        yield


def _is_done(folder: Path, number: int) -> bool:
    """Whether all pieces of a batch are there."""
    path = _part(folder, number)
    if not path.exists():
        return False
    return all("file" in line and (folder / line["file"]).is_file() for line in _read(path))


def _line(job: Job, found: Made | str, places: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says of a piece."""
    if isinstance(found, str):
        return {"name": job.name, "error": found, "recipe": job.about}
    digest = hashlib.sha256(np.ascontiguousarray(found.codes, "<i4").tobytes()).hexdigest()
    return {"name": job.name, **next(places), "codes_sha256": digest, "recipe": job.about}


def _part(folder: Path, number: int) -> Path:
    return folder / "parts" / f"{number:06d}.jsonl"


def _read(path: Path) -> list[dict[str, Any]]:
    lines = files.read_text(path, files.LARGEST_TEXT).split("\n")  # not splitlines: texts may hold U+2028
    return [files.parse_json(line, str(path)) for line in lines if line]


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    files.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
