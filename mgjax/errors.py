"""What mgjax raises where something that it was given cannot be used. All of them are ValueErrors."""

from __future__ import annotations


class ConfigError(ValueError):
    """Settings of a model or a run that make no sense, or do not fit together."""


class CheckpointError(ValueError):
    """Files that do not hold the model they should; the message names the file and says what to do."""


class NotFiniteError(ValueError):
    """Predictions, sound, a metric or a weight that are NaN or infinite."""


class CorpusError(ValueError):
    """A directory that is no corpus, or a damaged one; or music of which none can be made."""


class MetadataError(ValueError):
    """Metadata of a piece of music that cannot be understood."""


class DataError(ValueError):
    """A piece of a corpus that cannot be read, or corpora that cannot be trained on."""


class VocabularyError(ValueError):
    """A vocabulary that cannot be learned."""
