import io
import json
import random
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import transformers
from transformers.utils import sentencepiece_model_pb2_new

from mgjax.checkpoints.files.torch_file import CheckpointError
from mgjax.conditioning.t5 import T5Encoder
from mgjax.conditioning.tokenizers import TEXT_LENGTHS, Tokenizer
from mgjax.config.conditioning import T5Config

CORPUS = """a slow waltz on accordion with walking bass and soft brushes 80s synth pop driving drums heavy guitar lo-fi
hip hop beat, warm piano; ambient texture (no vocals), 120 bpm! Beethoven's fifth: orchestral strings & brass
rock'n'roll café naïve Straße jazz funk 4/4 minor key of C# F# "live" take -- upbeat..."""

VOCAB_SIZE = 90

NASTY = [
    "",
    " ",
    "a",
    "80s synth pop with driving drums",
    " leading and trailing ",
    "two  spaces   and\ttabs\nand\r\nlines\n\n",
    'CAPITALS, punctuation... (and) "quotes" & 4/4!',
    "café cafe\u0301 naïve Straße",
    "ﬁne ½ ² Ⅳ",
    "漢字かな 全角　ＡＢＣ",
    "👍🏽 x 🎸",
    "a\u00a0b\u200bc\u2028d",
    "▁a▁▁b",
    "\0 null",
    "supercalifragilisticexpialidocious" * 3,
]

SPECIAL_NAMES = ["</s>", "a</s>b", "<pad> <unk>", "the <extra_id_0> walks in <extra_id_99>"]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """Two directories with the same small vocabulary, made as that of T5 was: spiece.model, and tokenizer.json."""
    model = io.BytesIO()
    chance = random.Random(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(chance.choices(CORPUS.split(), k=8)) for _ in range(400)]),
        model_writer=model,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        vocab_size=VOCAB_SIZE,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    spiece, fast = tmp_path_factory.mktemp("spiece"), tmp_path_factory.mktemp("fast")
    (spiece / "spiece.model").write_bytes(model.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        # sentencepiece's own messages need a newer protobuf than apache-beam allows; transformers brings them too.
        patch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", sentencepiece_model_pb2_new)
        transformers.T5Tokenizer.from_pretrained(spiece).save_pretrained(fast)
    assert not (fast / "spiece.model").exists()
    return spiece, fast


@pytest.fixture(params=["spiece.model", "tokenizer.json"])
def tokenizer(request, vocabulary):
    return Tokenizer.from_directory(vocabulary[request.param == "tokenizer.json"])


def ids_of(tokenizer, text):
    (ids,), (mask,) = tokenizer.encode([text])
    return ids[mask].tolist()


@pytest.mark.parametrize("text", NASTY)
def test_ids_are_those_of_t5(vocabulary, tokenizer, text):
    expected = transformers.T5Tokenizer.from_pretrained(vocabulary[1])(text).input_ids
    assert [*tokenizer.text_to_ids(text), 1] == expected
    if text:
        assert ids_of(tokenizer, text) == expected


@pytest.mark.parametrize("text", SPECIAL_NAMES)
def test_names_of_special_tokens_are_text(vocabulary, text):
    spiece, fast = map(Tokenizer.from_directory, vocabulary)
    assert spiece.text_to_ids(text) == fast.text_to_ids(text)
    assert 1 not in fast.text_to_ids(text)
    assert 0 not in fast.text_to_ids(text)
    assert max(fast.text_to_ids(text)) < VOCAB_SIZE


def test_older_files_of_the_hub(vocabulary, tmp_path):
    """Published files name the arguments of Metaspace differently; those of some converters also clean up spaces."""
    content = json.loads((vocabulary[1] / "tokenizer.json").read_text())
    split, metaspace = content["pre_tokenizer"]["pretokenizers"]
    old = {"type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": True}
    clean = [
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
    ]
    forms = [
        content | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, old]}},
        content
        | {
            "pre_tokenizer": metaspace,
            "normalizer": {"type": "Sequence", "normalizers": [content["normalizer"], *clean]},
        },
    ]
    expected = Tokenizer.from_directory(vocabulary[0])
    for form in forms:
        (tmp_path / "tokenizer.json").write_text(json.dumps(form))
        got = Tokenizer.from_directory(tmp_path)
        for text in NASTY + SPECIAL_NAMES:
            assert got.text_to_ids(text) == expected.text_to_ids(text)


def test_file_options_for_length_are_ignored(vocabulary, tmp_path):
    content = json.loads((vocabulary[1] / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert len(Tokenizer.from_directory(tmp_path).text_to_ids("one two three four")) > 4


def test_null_texts(tokenizer):
    ids, mask = tokenizer.encode([None, "", " ", "pop"])
    assert ids.dtype == np.int32
    assert mask.dtype == bool
    assert mask.sum(axis=1)[:3].tolist() == [0, 0, 1]
    assert ids[:3, 0].tolist() == [0, 0, 1]
    assert tokenizer.encode([None])[0].shape == (1, TEXT_LENGTHS[0])


def test_batches_have_few_lengths():
    tokenizer = Tokenizer.bytes()
    for length, width in [(1, 16), (15, 16), (16, 32), (31, 32), (100, 128), (511, 512)]:
        ids, mask = tokenizer.encode(["x", "y" * length])
        assert ids.shape == mask.shape == (2, width)
        assert mask.sum(axis=1).tolist() == [2, length + 1]


def test_a_text_that_is_too_long_is_cut_with_a_warning(tokenizer):
    text = "pop jazz " * 600
    dropped = len(tokenizer.text_to_ids(text)) - 511
    with pytest.warns(UserWarning, match=f"{dropped} more"):
        ids, mask = tokenizer.encode([text])
    assert ids.shape == (1, 512)
    assert mask.all()
    assert ids[0].tolist() == [*tokenizer.text_to_ids(text)[:511], 1]


def test_bytes():
    tokenizer = Tokenizer.bytes()
    assert ids_of(tokenizer, "aé") == [3 + 0x61, 3 + 0xC3, 3 + 0xA9, 1]
    assert tokenizer.vocab_size == 259


def test_undecodable_command_lines(tokenizer):
    assert ids_of(tokenizer, b"caf\xe9".decode(errors="surrogateescape")) == ids_of(tokenizer, "caf?")


def test_vocab_size(tokenizer):
    assert tokenizer.vocab_size == VOCAB_SIZE


def test_a_row_does_not_depend_on_its_batch(tokenizer):
    config = T5Config(
        vocab_size=VOCAB_SIZE, dim=16, head_dim=8, ffn_dim=16, num_layers=2, num_heads=2, num_buckets=8, max_distance=20
    )
    encoder = T5Encoder(config)
    short, long = "80s synth pop", CORPUS
    (ids_1, mask_1), (ids_2, mask_2) = tokenizer.encode([short]), tokenizer.encode([long, None, short])
    assert ids_1.shape[1] < ids_2.shape[1]
    variables = encoder.init(jax.random.key(0), jnp.asarray(ids_1), jnp.asarray(mask_1))
    alone = encoder.apply(variables, jnp.asarray(ids_1), jnp.asarray(mask_1))[0, mask_1[0]]
    together = encoder.apply(variables, jnp.asarray(ids_2), jnp.asarray(mask_2))[2, mask_2[2]]
    assert np.abs(alone - together).max() < 1e-5  # measured 6e-7


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.json"])
@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[: len(content) // 2], lambda content: b"{}"]
)
def test_damaged_files_are_named(vocabulary, tmp_path, name, damage):
    content = (vocabulary[name == "tokenizer.json"] / name).read_bytes()
    (tmp_path / name).write_bytes(damage(content))
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} is not a readable tokenizer"):
        Tokenizer.from_directory(tmp_path)


def test_what_is_in_no_vocabulary_has_its_token(vocabulary, tmp_path):
    """Also where the file does not say which one that is."""
    content = json.loads((vocabulary[1] / "tokenizer.json").read_text())
    del content["model"]["unk_id"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ids = [
        Tokenizer.from_directory(folder).encode(["\N{MUSICAL SYMBOL G CLEF}"])[0] for folder in (tmp_path, *vocabulary)
    ]
    np.testing.assert_array_equal(ids[0], ids[1])
    np.testing.assert_array_equal(ids[0], ids[2])


def test_other_vocabularies_are_refused(tmp_path):
    vocab = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], ["a", -1.0]]
    content = {"added_tokens": [], "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="is not a vocabulary of T5"):
        Tokenizer.from_directory(tmp_path)


def test_no_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no tokenizer: expected spiece\.model or tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
