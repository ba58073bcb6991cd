"""What a run reads besides its settings, told apart by hashes: it goes on with the same, or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from mgjax.data.corpus import Corpus
from mgjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run reads.

    Attributes:
      hashes: Of each input by its name; of a corpus one for each shard.
      may_grow: Whether corpora may have more shards than they had, behind those that they had.
    """

    hashes: Mapping[str, str | list[str]]
    may_grow: bool = False

    @classmethod
    def of(cls, corpora: Iterable[Corpus], may_grow: bool, **hashes: str | None) -> Inputs:
        """Those of a run that reads `corpora`, and what these hashes are of."""
        found = {f"{corpus.split} split of {corpus.directory}": corpus.hashes() for corpus in corpora}
        return cls(found | {name: value for name, value in hashes.items() if value}, may_grow)

    def check(self, before: Mapping[str, str | list[str]] | None, workdir: Path) -> str:
        """What is to be said where a run in `workdir` goes on that was begun with `before` (None if that is not known).

        Raises:
          ConfigError: It was begun with something else.
        """
        if before is None:
            return ", which says nothing of what it was begun with: corpora and weights are not compared"
        shared = sorted(set(before) & set(self.hashes))
        differing = [name for name in shared if before[name] != self.hashes[name]]
        now = {name: self.hashes[name] for name in differing}
        grown = [name for name in now if isinstance(now[name], list) and now[name][: len(before[name])] == before[name]]
        others = [name for name in differing if name not in grown]
        if others:
            raise ConfigError(
                f"the run in {workdir} was begun with another {' and another '.join(others)} than is there now: put "
                "that back, or give another folder"
            )
        if grown and not self.may_grow:
            raise ConfigError(
                f"the {' and the '.join(grown)} has grown since the run in {workdir} was begun: set "
                "data.may_grow to go on with all that is there now, or give another folder"
            )
        return "".join(f"; the {name} has grown" for name in grown)


NONE = Inputs({})
