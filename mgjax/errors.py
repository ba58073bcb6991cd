"""The exceptions of mgjax, for settings and files that cannot be used. All of them are ValueErrors."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_LONGEST = 4000  # characters of a message, which may quote files


class _Error(ValueError):
    """The base class: its message can be printed, whatever it quotes from files."""

    def __init__(self, message: str):
        cut = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
        super().__init__(_UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], cut))


class ConfigError(_Error):
    """Settings of a model or a run that are invalid, or do not fit together."""


class CheckpointError(_Error):
    """Files that do not hold the expected model; the message names the file and says what to do."""


class NotFiniteError(_Error):
    """Logits, audio, a metric or a weight that are NaN or infinite."""


class CorpusError(_Error):
    """A directory that holds no corpus or a damaged one, or music that cannot be made into one."""


class MetadataError(_Error):
    """Metadata of a piece of music that cannot be parsed."""


class DataError(_Error):
    """A piece of a corpus that cannot be read, or corpora that cannot be used for training."""


class VocabularyError(_Error):
    """A vocabulary that cannot be learned from the texts."""
