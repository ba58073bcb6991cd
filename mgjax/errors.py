"""What mgjax raises where something that it was given cannot be used. All of them are ValueErrors."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_LONGEST = 4000  # characters of a message; what files say of themselves has no end


class _Error(ValueError):
    """Its message can be printed, whatever files have brought into it."""

    def __init__(self, message: str):
        cut = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
        super().__init__(_UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], cut))


class ConfigError(_Error):
    """Settings of a model or a run that make no sense, or do not fit together."""


class CheckpointError(_Error):
    """Files that do not hold the model they should; the message names the file and says what to do."""


class NotFiniteError(_Error):
    """Predictions, sound, a metric or a weight that are NaN or infinite."""


class CorpusError(_Error):
    """A directory that is no corpus, or a damaged one; or music of which none can be made."""


class MetadataError(_Error):
    """Metadata of a piece of music that cannot be understood."""


class DataError(_Error):
    """A piece of a corpus that cannot be read, or corpora that cannot be trained on."""


class VocabularyError(_Error):
    """A vocabulary that cannot be learned."""
