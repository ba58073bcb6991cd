import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers

from mgjax.checkpoints.files.torch_file import CheckpointError
from mgjax.conditioning.tokenizers import clap_tokenizer

CORPUS = ["a slow waltz on accordion", "Fast drums, é and 日本!", "waltz waltz slow slow 120 bpm", "  two  spaces\n"]
TEXTS = [*CORPUS, " ", "unseen Wörter? 🎻", "it's", "waltz\tslow", "ﬁne e\u0301 \u0085 x", "a"]


def write_vocabulary(directory):
    """vocab.json and merges.txt, learned from CORPUS, with RoBERTa's special tokens at their places."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator(CORPUS * 3, trainer)
    learned = json.loads(model.to_str())["model"]
    Path(directory, "vocab.json").write_text(json.dumps(learned["vocab"]))
    Path(directory, "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, learned["merges"])]) + "\n")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(directory)
    return directory


@pytest.fixture(scope="module")
def reference(vocabulary):
    return transformers.RobertaTokenizer(str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt"))


@pytest.fixture(scope="module", params=["vocab.json", "tokenizer.json"])
def tokenizer(request, vocabulary, reference, tmp_path_factory):
    if request.param == "vocab.json":
        return clap_tokenizer(vocabulary)
    directory = tmp_path_factory.mktemp("json")
    reference.save_pretrained(directory)
    assert (directory / "tokenizer.json").is_file()
    return clap_tokenizer(directory)


def test_equals_transformers(tokenizer, reference):
    ids, mask = tokenizer.encode(TEXTS)
    right = reference(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="np")
    assert np.array_equal(ids, right["input_ids"])
    assert np.array_equal(mask, right["attention_mask"].astype(bool))
    assert (tokenizer.start, tokenizer.pad, tokenizer.end, tokenizer.vocab_size) == (0, 1, 2, 312)
    assert len(set(map(bytes, ids))) == len(TEXTS)


def test_long_texts_are_cut_with_a_warning(tokenizer, reference):
    text = "drums " * 80
    with pytest.warns(UserWarning, match=r"beginning 'drums drums.* has \d+ tokens, \d+ more"):
        ids, mask = tokenizer.encode([text])
    right = reference([text], max_length=77, truncation=True, return_tensors="np")
    assert np.array_equal(ids, right["input_ids"])
    assert mask.all()


def test_null_rows(tokenizer):
    ids, mask = tokenizer.encode(["a", None, ""])
    assert (ids[1:] == 1).all()
    assert mask.sum(axis=1).tolist() == [3, 0, 0]
    assert ids.dtype == np.int32


def test_names_of_special_tokens_are_text(tokenizer):
    ids, _ = tokenizer.encode(["a</s><pad>b <mask>"])
    inside = ids[0, 1 : list(ids[0]).index(2)]
    assert len(inside) > 10
    assert (inside > 4).all()


def test_undecodable_bytes(tokenizer):
    assert np.array_equal(tokenizer.encode(["a\udcff"])[0], tokenizer.encode(["a?"])[0])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no tokenizer"),
        ({"vocab.json": "{}"}, "holds no tokenizer"),
        ({"vocab.json": "{}", "merges.txt": ""}, "not a readable tokenizer of RoBERTa.*'<s>'"),
        ({"vocab.json": "broken", "merges.txt": ""}, "not a readable tokenizer of RoBERTa"),
        ({"tokenizer.json": '{"model": {"type": "Unigram", "vocab": []}}'}, "Unigram, not BPE"),
        ({"tokenizer.json": '{"model": '}, "not a readable tokenizer of RoBERTa"),
    ],
)
def test_errors(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        clap_tokenizer(tmp_path)
