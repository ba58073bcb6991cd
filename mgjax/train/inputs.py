"""The inputs of a run by their hashes: a run goes on only with the corpora and weights that it started with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mgjax.data.corpus import Corpus
from mgjax.data.description import SPLITS
from mgjax.devices import distributed
from mgjax.errors import ConfigError
from mgjax.storage import preflight
from mgjax.storage.paths import Path


def open_corpora(directories: Sequence[str]) -> dict[str, list[Corpus]]:
    """The corpora of a run by their splits, opened on all hosts.

    Raises:
      CorpusError: There is no such corpus, or files are missing or damaged.
      OSError: A host may not read one; the message names host and bucket.
    """
    for directory in directories:
        distributed.on_all(functools.partial(preflight.check_readable, directory, "corpus.json"))
    return {split: [Corpus.open(directory, split) for directory in directories] for split in SPLITS}


@dataclasses.dataclass(frozen=True)
class InputHashes:
    """The hashes of the corpora and weights that a run reads."""

    hashes: Mapping[str, str | list[str]]  # of each input by its name; of a corpus, one for each shard
    may_grow: bool = False  # whether shards may have been appended to corpora

    @classmethod
    def of(cls, corpora: Iterable[Corpus], may_grow: bool, **hashes: str | None) -> InputHashes:
        """The inputs of a run that reads `corpora`, and weights with these `hashes`."""
        inputs: dict[str, Any] = {f"{corpus.split} split of {corpus.directory}": corpus.hashes() for corpus in corpora}
        return cls(inputs | {name: value for name, value in hashes.items() if value}, may_grow)

    def check(self, before: Mapping[str, str | list[str]] | None, workdir: Path) -> str:
        """Compares with the inputs that the run in `workdir` started with, and returns a remark to log, or "".

        Raises ConfigError if it started with other inputs.
        """
        if before is None:
            return ", which does not hold the hashes of its inputs: corpora and weights are not compared"
        shared = sorted(set(before) & set(self.hashes))
        differing = [name for name in shared if before[name] != self.hashes[name]]
        shards = {name: now for name in differing if isinstance(now := self.hashes[name], list)}
        grown = [name for name, now in shards.items() if now[: len(before[name])] == before[name]]
        changed = [name for name in differing if name not in grown]
        if changed:
            raise ConfigError(
                f"the run in {workdir} was started with another {' and another '.join(changed)} than is there now: put "
                "that back, or give another folder"
            )
        if grown and not self.may_grow:
            raise ConfigError(
                f"the {' and the '.join(grown)} has grown since the run in {workdir} was started: set "
                "data.may_grow to go on with all shards, or give another folder"
            )
        return "".join(f"; the {name} has grown" for name in grown)


NO_INPUTS = InputHashes({})
