"""The vocabularies of text encoders: spiece.model, tokenizer.json of T5, and the files of CLAP."""

import json

from fuzzing import Door

from mgjax.conditioning.tokenizers import Tokenizer, clap_tokenizer
from mgjax.data import vocabulary

TEXTS = ["a calm piano in the rain", "a polka with drums", "bpm: 120"]
UNIGRAM = {"type": "Unigram", "unk_id": 2, "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", -9.0], ["calm", -1.0]]}
BYTE_PAIRS = {"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3, "c": 4, "ca": 5, "l": 6, "m": 7}
MERGES = ["c a"]


def tokenizer(model, before):
    special = {"id": 0, "content": "<pad>", "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": {"type": before},
        "post_processor": None, "decoder": None, "model": model,
        "added_tokens": [special | {"normalized": False, "special": True}],
    }  # fmt: skip


def write(folder):
    for name in ("t5", "clap", "roberta"):
        (folder / name).mkdir()
    vocabulary.train(TEXTS, 300, folder / "sentencepiece")
    (folder / "t5" / "tokenizer.json").write_text(json.dumps(tokenizer(UNIGRAM, "WhitespaceSplit")))
    model = {"type": "BPE", "vocab": BYTE_PAIRS, "merges": MERGES}
    byte_level = tokenizer(model, "ByteLevel")
    byte_level["pre_tokenizer"] |= {"add_prefix_space": False, "trim_offsets": True}
    (folder / "clap" / "tokenizer.json").write_text(json.dumps(byte_level))
    (folder / "roberta" / "vocab.json").write_text(json.dumps(BYTE_PAIRS))
    (folder / "roberta" / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")


def read(folder):
    load = Tokenizer.from_directory if folder.name in ("sentencepiece", "t5") else clap_tokenizer
    load(folder).encode([*TEXTS, "", None, "\0 é \N{LINE SEPARATOR} 琴"])


DOOR = Door(write, read)


def test_tokenizers(endure):
    endure("tokenizers")
