"""Learns a vocabulary from the texts of corpora, for a text encoder that is trained from scratch.

It is a unigram model of sentencepiece (Kudo 2018) like T5's, with T5's special tokens, and falls back to bytes, so that
it encodes any text.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import sentencepiece

from mgjax.conditioning.tokenizers import SPECIAL
from mgjax.data.corpus import Corpus
from mgjax.data.prompts import TextConfig, assemble
from mgjax.errors import VocabularyError
from mgjax.inputs import claims, files
from mgjax.storage import paths

FILE = "spiece.model"

# All texts that training may draw for a piece in one: its description, and every known field.
_EVERYTHING = TextConfig(merge_text_p=1.0, drop_desc_p=0.0, keep_other_p=1.0, word_dropout=0.0)

_RESERVED = "\N{LOWER FIVE EIGHTHS BLOCK}"  # sentencepiece leaves out texts with this character, its mark of an edge


def texts_of(corpora: Sequence[Corpus], progress: Callable[[int, int], None] | None = None) -> Iterator[str]:
    """The texts of all pieces, each with the description and all fields of the metadata.

    `progress` is called with the number of finished pieces, and of all.
    """
    rng = np.random.default_rng(0)  # the order of the fields
    done, total = 0, sum(map(len, corpora))
    for corpus in corpora:
        for piece in range(len(corpus)):
            text = assemble(corpus.metadata(piece), _EVERYTHING, rng)
            done += 1
            if progress:
                progress(done, total)
            if text:
                yield text


def train(texts: Iterable[str], size: int, directory: str | os.PathLike, *, replace: bool = False) -> int:
    """Learns a vocabulary, writes it to spiece.model in `directory`, and returns its size.

    The same texts in the same order give the same file. `size` counts the 3 special tokens and 256 bytes too; few texts
    may give a smaller vocabulary. An existing vocabulary, but not that of a model, is overwritten to `replace` it.

    Raises:
      VocabularyError: There are no texts, or `size` is too small for them.
      FileExistsError: `directory` holds a vocabulary already, or that of a model.
    """
    path = paths.path(directory, FILE)
    if path.exists() and (not replace or (path.parent / "config.json").exists()):  # of a model
        raise FileExistsError(f"{path} exists, and models may have been trained with it: give another folder")
    plain = (text.encode(errors="replace").decode().replace(_RESERVED, " ") for text in texts)
    sentences = [sentence for text in plain if (sentence := " ".join(text.split()))]
    if not sentences:
        raise VocabularyError(
            "there are no texts to learn a vocabulary from: the pieces need descriptions, or a key, genre, moods, "
            "keywords or instruments"
        )
    content = _trained(sentences, size)
    with claims.claimed(path.parent), files.replacing(path) as file:
        if path.exists() and not replace:
            raise FileExistsError(f"{path}: another run has written it meanwhile; give another folder")
        file.write(content)
    return sentencepiece.SentencePieceProcessor(model_proto=content).GetPieceSize()


def _trained(sentences: list[str], size: int) -> bytes:
    pad, end, unknown = SPECIAL
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,  # fewer pieces where there are no more
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece=pad,
            eos_piece=end,
            unk_piece=unknown,
            byte_fallback=True,
            split_digits=True,  # so that a tempo that is not in the texts is encoded by its digits
            normalization_rule_name="nmt_nfkc_cf",  # in lower case, as few texts have few capitals
            max_sentence_length=2**30,  # the largest limit; longer texts would be dropped
            num_threads=1,  # the result would depend on their number
            minloglevel=2,
        )
    except RuntimeError as error:
        needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if needed is None:
            raise VocabularyError(f"sentencepiece could not learn a vocabulary of these texts ({error})") from error
        raise VocabularyError(
            f"{size} pieces are too few: {needed[1]} is the least for these texts, which are 3 special tokens, 256 "
            "bytes and the characters that occur"
        ) from None
    return model.getvalue()
