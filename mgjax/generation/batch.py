"""Generates music for many prompts in full batches on all hosts, each piece written once, resumable.

The jobs and the batch size alone decide which pieces share a batch. So every piece is the same on any number of hosts,
and however often the run was interrupted: only the missing batches are generated again.

The folder holds `run.json`, the settings of the run; sound files, or the shards of a corpus of sound; in `parts` a file
with the manifest's lines of each finished batch; and at the end `manifest.jsonl`, all of them in the order of the jobs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32, Int32

from mgjax.audio import files as audio_files
from mgjax.devices import distributed
from mgjax.inputs import claims, files
from mgjax.storage import paths
from mgjax.storage.paths import Path

log = logging.getLogger("mgjax")

# Errors of the machine, which any other piece would have too.
_MACHINE_ERRORS = (MemoryError, jax.errors.JaxRuntimeError)


class Job(NamedTuple):
    """A piece to generate."""

    name: str  # of its file, and in the manifest
    kind: Hashable  # pieces of one kind, above all of one length, can share a batch
    recipe: Any  # its arguments, for `generate_batch`
    about: dict[str, Any]  # the same for the manifest, as JSON


class Piece(NamedTuple):
    """A generated piece: its codes, and its audio from -1 to 1."""

    codes: Int32[np.ndarray, "t k"]
    audio: Float32[np.ndarray, "n c"]


GenerateBatch = Callable[[Sequence[Any]], Sequence[Piece]]  # recipes of one kind -> their pieces


def generate(
    jobs: Sequence[Job],
    generate_batch: GenerateBatch,
    writer: Sounds | Records,
    folder: Path,
    size: int,
    settings: dict[str, Any],
    machine: dict[str, Any],
    progress: Callable[[list[Job], int, int], None],
) -> int:
    """Generates the pieces that `folder` does not hold yet, this process its share; returns how many failed.

    All hosts see the folder. The names of jobs differ. A run that resumes must have the same `settings`, those of all
    pieces as JSON; `machine`, the devices and the model's source, is for the manifest alone. `progress` is called with
    each batch that is done, how many of this process are done by now, and of how many.

    The manifest has the errors of those that failed; the next run tries them again.

    Raises:
      ValueError: The folder holds other pieces, or is not the same folder on all hosts.
      FileExistsError: Another run is at work in it.
    """
    batches, first = packed(jobs, size), jax.process_index() == 0
    with _claimed(folder, batches, settings):
        # As the first host sees it, and before any of them begins.
        done = _done(folder) if first else set()
        missing = np.array([first and number not in done for number in range(len(batches))])
        numbers = np.flatnonzero(multihost_utils.broadcast_one_to_all(missing)).tolist()
        local_numbers, failed = numbers[jax.process_index() :: jax.process_count()], 0
        for count, number in enumerate(local_numbers, 1):
            batch = batches[number]
            results = list(zip(batch, pieces_or_errors(generate_batch, batch, size), strict=True))
            finished = [(job, result) for job, result in results if isinstance(result, Piece)]
            entries = iter(writer.write(folder, number, len(batches), finished))
            lines = [_line(job, result, entries) | {"machine": machine} for job, result in results]
            _write(_part(folder, number), lines)
            failed += len(batch) - len(finished)
            progress(batch, count, len(local_numbers))
        failed = int(np.sum(multihost_utils.process_allgather(np.int32(failed))))  # when all are done
        if first:
            files_of_parts = [_part(folder, number) for number in range(len(batches))]
            distributed.wait_until(lambda: all(path.exists() for path in files_of_parts))
            parts = [_read(path) for path in files_of_parts]
            if failed < len(jobs):
                writer.finish(folder, parts)
            by_name = {line["name"]: line for part in parts for line in part}
            _write(folder / "manifest.jsonl", [by_name[job.name] for job in jobs])
    return failed


def packed(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """The jobs in batches of one kind, at most `size` in each."""
    kinds: dict[Hashable, list[Job]] = defaultdict(list)
    for job in jobs:
        kinds[job.kind].append(job)
    return [same[start : start + size] for same in kinds.values() for start in range(0, len(same), size)]


def pieces_or_errors(generate_batch: GenerateBatch, batch: Sequence[Job], size: int) -> list[Piece | str]:
    """The piece of each job of a batch, or the error that it fails with, alone.

    A batch that is not full is filled up with its last job, so that one program serves all.
    """
    filled = [*batch, *[batch[-1]] * (size - len(batch))]
    try:
        return list(generate_batch([job.recipe for job in filled])[: len(batch)])
    except _MACHINE_ERRORS:
        raise
    except Exception as error:
        if len(batch) > 1:
            return [result for job in batch for result in pieces_or_errors(generate_batch, [job], size)]
        log.warning("%s cannot be made: %s", batch[0].name, error)
        return [f"{type(error).__name__}: {error}"]


@dataclasses.dataclass(frozen=True)
class Sounds:
    """Writes a sound file for each piece, in the format of the `suffix`."""

    suffix: str
    sample_rate: int

    def write(self, folder: Path, number: int, count: int, pieces: Sequence[tuple[Job, Piece]]) -> list[dict[str, Any]]:
        """Writes the pieces of batch `number` of `count`; returns what the manifest says of where each is."""
        names = [f"{job.name}{self.suffix}" for job, _ in pieces]
        for name, (_, piece) in zip(names, pieces, strict=True):
            audio_files.write(folder / name, piece.audio, self.sample_rate)
        return [{"file": name} for name in names]

    def finish(self, folder: Path, lines: Sequence[Sequence[dict[str, Any]]]) -> None:
        """Is called once all batches are written, with the manifest's lines of each; nothing is left to do."""


@dataclasses.dataclass(frozen=True)
class Records:
    """Writes a corpus of sound (`mgjax.data.corpus`): a shard for each batch, with the prompts as descriptions."""

    description: Any  # of the corpus

    def write(self, folder: Path, number: int, count: int, pieces: Sequence[tuple[Job, Piece]]) -> list[dict[str, Any]]:
        """Writes the shard of batch `number` of `count`; see `Sounds`."""
        from mgjax.audio.metadata import Metadata
        from mgjax.data import corpus, corpus_writing

        path = corpus.shard_path(folder, "audio", "train", number, count)
        content = (
            corpus_writing.Piece(job.name, Metadata(description=job.about.get("prompt") or None), [piece.audio])
            for job, piece in pieces
        )
        shard = corpus_writing.write_shard(path, self.description, content)
        lengths = enumerate(shard.lengths)
        return [{"file": path.name, "piece": piece, "num_samples": length} for piece, length in lengths]

    def finish(self, folder: Path, lines: Sequence[Sequence[dict[str, Any]]]) -> None:
        """Writes the description of the corpus."""
        from mgjax.data import corpus, corpus_writing

        shards, sizes = [], paths.sizes(folder)
        for number, part in enumerate(lines):
            path = corpus.shard_path(folder, "audio", "train", number, len(lines))
            lengths = [line["num_samples"] for line in part if "file" in line]
            shards.append(corpus_writing.Shard(lengths, sizes[path.name]))
        corpus_writing.finish(folder, self.description, {"train": shards})


@contextlib.contextmanager
def _claimed(folder: Path, batches: list[list[Job]], settings: dict[str, Any]) -> Iterator[None]:
    """Claims the folder for this run and writes `run.json`; raises where it belongs to another, or is in use."""
    paths.make_folder(folder / "parts")
    distributed.check_shared(folder)
    listed = json.dumps([[job.name, job.about] for batch in batches for job in batch], sort_keys=True)
    settings = {**settings, "pieces": hashlib.sha256(listed.encode()).hexdigest()}
    path = folder / "run.json"
    stored = files.read_json(path) if path.exists() else settings
    if not isinstance(stored, dict):
        raise ValueError(f"{path}: does not say what is made in this folder; give another one")
    differing = sorted(name for name in stored | settings if stored.get(name) != settings.get(name))
    if differing:
        reasons = [f"{name} is {stored.get(name)!r} there and {settings.get(name)!r} here" for name in differing]
        if differing == ["pieces"]:
            reasons = ["the prompts, or the settings of some, were others then"]
        raise ValueError(f"{folder} holds other music: {', '.join(reasons)}. Give another folder, or all as it was")
    if jax.process_index():
        yield
        return
    with claims.claimed(folder):
        if not files.create(path, json.dumps(settings, indent=2) + "\n") and files.read_json(path) != settings:
            raise ValueError(f"{folder} holds other music: another run has just begun there. Give another folder")
        yield


def _done(folder: Path) -> set[int]:
    """The numbers of the batches whose pieces are all written."""
    written = paths.sizes(folder)
    parts = [name for name in paths.sizes(folder / "parts") if name.endswith(".jsonl") and name[:-6].isdecimal()]
    return {
        int(name[:-6])
        for name in parts
        if all("file" in line and line["file"] in written for line in _read(folder / "parts" / name))
    }


def _line(job: Job, result: Piece | str, entries: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The manifest's line of a piece."""
    if isinstance(result, str):
        return {"name": job.name, "error": result, "recipe": job.about}
    digest = hashlib.sha256(np.ascontiguousarray(result.codes, "<i4").tobytes()).hexdigest()
    return {"name": job.name, **next(entries), "codes_sha256": digest, "recipe": job.about}


def _part(folder: Path, number: int) -> Path:
    return folder / "parts" / f"{number:06d}.jsonl"


def _read(path: Path) -> list[dict[str, Any]]:
    lines = files.read_text(path, files.LARGEST_TEXT).split("\n")  # not splitlines: texts may hold U+2028
    return [files.parse_json(line, str(path)) for line in lines if line]


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    files.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
