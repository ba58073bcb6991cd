"""Batches: what is in them, that they are the same for all readers, and that they go on where they stopped."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("grain")

import tiny_corpora

from mgjax.audio.metadata import Metadata
from mgjax.conditioning.tokenizers import Tokenizer
from mgjax.config.serialization import ConfigError, from_dict
from mgjax.data.conditions import BatchConditions, Dropout
from mgjax.data.corpus import Corpus
from mgjax.data.corpus_writing import Piece
from mgjax.data.description import Description, describe_audio, shard_path
from mgjax.data.pipeline import DataConfig, DataError, batches, validation_batches
from mgjax.data.prompts import TextConfig

ROOT = Path(__file__).parents[2]
RATE = 100
LENGTHS = (300, 1000, 40, 160, 500)  # samples of the pieces
ROOM = 2048  # a sample of 16 bits says which piece it is from, and where from: piece * ROOM + place
AUDIO = describe_audio(RATE, 1)
TOKENS = Description("tokens", RATE, 1, frame_rate=50.0, num_codebooks=2, codebook_size=4096, codec_hash="ab")
CONFIG = DataConfig(batch_size=8, segment_seconds=1.0, num_threads=2, prefetch=2)
TEXT = TextConfig(max_tokens=16)
UNCHANGED = TextConfig(merge_text_p=0.0, word_dropout=0.0, max_tokens=16)
NONE = Dropout(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
encode = Tokenizer.bytes().encode


def write(directory, description=AUDIO, train=LENGTHS, valid=LENGTHS):
    """A corpus whose every sample tells where it is from."""

    def piece(i, length):
        places = np.arange(length)[:, None]
        is_audio = description.kind == "audio"
        content = [((i * ROOM + places) / 32768).astype(np.float32)] if is_audio else places * [1, 0] + [0, i]
        ids, mask = encode([f"piece {i}"])
        return Piece(f"{i}", Metadata(description=f"piece {i}"), content, ids[mask] if description.tokenizer else None)

    splits = {"train": train, "valid": valid}
    tiny_corpora.write(
        directory, description, {name: list(map(piece, range(16), lengths)) for name, lengths in splits.items()}
    )
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write(tmp_path_factory.mktemp("corpora") / "audio")


@pytest.fixture(scope="module")
def train(directory):
    return Corpus.open(directory, "train")


@pytest.fixture(scope="module")
def valid(directory):
    return Corpus.open(directory, "valid")


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def joined(hosts):
    """The batches of several hosts as batches of one."""
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
            assert one[name].dtype == other[name].dtype


def places(batch):
    """The piece and the start of each row, by what its first sample says."""
    return np.divmod(np.rint(batch["audio"][:, 0, 0] * 32768).astype(int), ROOM)


def drawn(corpus, config, count=100, seed=0):
    """Pieces, starts and lengths of many rows."""
    found = take(batches(corpus, dataclasses.replace(config, batch_size=32, num_threads=0), seed=seed), count)
    pieces, starts = np.concatenate([places(batch) for batch in found], axis=1)
    return pieces, starts, np.concatenate([batch["num_samples"] for batch in found])


def test_rows_are_stretches_of_the_pieces_with_zeros_where_there_is_no_more(train):
    for batch in take(batches(train, CONFIG, seed=0), 10):
        assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == {
            "audio": ((8, 100, 1), "float32"),
            "num_samples": ((8,), "int32"),
        }
        for audio, num_samples, piece, start in zip(batch["audio"], batch["num_samples"], *places(batch), strict=True):
            assert num_samples == min(100, LENGTHS[piece] - start)
            expected = np.zeros(100)
            expected[:num_samples] = piece * ROOM + start + np.arange(num_samples)
            np.testing.assert_array_equal(audio[:, 0] * 32768, expected)


def test_rows_of_codes(tmp_path):
    corpus = Corpus.open(write(tmp_path / "tokens", TOKENS), "train")
    for batch in take(batches(corpus, dataclasses.replace(CONFIG, segment_seconds=1.9), seed=0), 5):
        codes, num_frames = batch["codes"], batch["num_frames"]
        assert (codes.shape, codes.dtype, num_frames.dtype) == ((8, 95, 2), np.int32, np.int32)
        for row, frames in zip(codes, num_frames, strict=True):
            start, piece = row[0]
            assert frames == min(95, LENGTHS[piece] - start)
            np.testing.assert_array_equal(
                row[:frames], np.stack([start + np.arange(frames), np.full(frames, piece)], 1)
            )
            assert not row[frames:].any()


def test_seconds_are_counted_in_whole_frames(tmp_path):
    corpus = Corpus.open(write(tmp_path / "tokens", TOKENS), "train")
    batch = next(batches(corpus, dataclasses.replace(CONFIG, segment_seconds=2.3), seed=0))
    assert batch["codes"].shape[1] == 115, "2.3 * 50 is 114.99999999999999"


def test_a_batch_is_a_function_of_the_seed_and_its_number(train):
    expected = take(batches(train, CONFIG, seed=3), 6)
    assert_equal(take(batches(train, dataclasses.replace(CONFIG, num_threads=0), seed=3), 6), expected)
    assert_equal(take(batches(train, dataclasses.replace(CONFIG, num_threads=4, prefetch=7), seed=3), 6), expected)
    rows = [row.tobytes() for batch in expected for row in batch["audio"]]
    assert len(set(rows)) > len(rows) - 4, "all rows are drawn anew"
    assert not np.array_equal(next(batches(train, CONFIG, seed=4))["audio"], expected[0]["audio"])


@pytest.mark.parametrize("hosts", [[range(4), range(4, 8)], [[i] for i in range(8)]])
def test_hosts_read_their_rows_of_the_same_batch(train, hosts):
    whole = take(batches(train, CONFIG, seed=0, conditions=BatchConditions(TEXT, encode)), 2)
    parts = [
        take(batches(train, CONFIG, seed=0, rows=rows, conditions=BatchConditions(TEXT, encode)), 2) for rows in hosts
    ]
    assert_equal(joined(parts), whole)


@pytest.mark.parametrize("settings", [{"num_threads": 0}, {"num_threads": 3, "prefetch": 5}, {"prefetch": 1}])
def test_it_goes_on_exactly_where_it_stopped(train, settings):
    config = dataclasses.replace(CONFIG, **settings)
    iterator = batches(train, config, seed=0, conditions=BatchConditions(TEXT, encode))
    expected = take(iterator, 3)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"num_batches": 3}, "what was prefetched does not count"
    expected += take(iterator, 3)
    again = batches(train, CONFIG, seed=0, conditions=BatchConditions(TEXT, encode))
    again.set_state(state)
    assert again.get_state() == state
    assert_equal(take(again, 3), expected[3:])
    iterator.set_state({"num_batches": 1})
    assert_equal(take(iterator, 5), expected[1:])
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_processes_give_what_threads_give(directory, train):
    expected = take(batches(train, CONFIG, seed=0, conditions=BatchConditions(TEXT, encode)), 8)
    config = dataclasses.replace(CONFIG, num_workers=2)
    iterator = batches(Corpus.open(directory, "train"), config, seed=0, conditions=BatchConditions(TEXT, encode))
    iterator.set_state({"num_batches": 1})
    assert_equal(take(iterator, 5), expected[1:6])
    assert len(multiprocessing.active_children()) == 2
    state = iterator.get_state()
    iterator.close()
    assert not multiprocessing.active_children()
    resumed = batches(train, CONFIG, seed=0, conditions=BatchConditions(TEXT, encode))
    resumed.set_state(state)
    assert_equal(take(resumed, 2), expected[6:])


def test_processes_end_with_a_run_that_is_killed(directory, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import multiprocessing, os, signal, sys\n"
        "from mgjax.data.corpus import Corpus\n"
        "from mgjax.data.pipeline import DataConfig, batches\n"
        "if __name__ == '__main__':\n"
        "    config = DataConfig(batch_size=2, segment_seconds=1.0, num_workers=1)\n"
        "    iterator = batches(Corpus.open(sys.argv[1]), config, seed=0)\n"
        "    next(iterator)\n"
        "    print(len(multiprocessing.active_children()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, script, directory]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # This waits until nobody holds the pipe of its output any longer: for the end of the worker too.
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "1\n"), done.stderr


def test_seconds_are_drawn_equally_often_or_pieces_are(train):
    pieces, _, _ = drawn(train, CONFIG)
    np.testing.assert_allclose(np.bincount(pieces) / len(pieces), np.array(LENGTHS) / sum(LENGTHS), atol=0.025)
    pieces, _, _ = drawn(train, dataclasses.replace(CONFIG, sample_on_duration=False))
    np.testing.assert_allclose(np.bincount(pieces) / len(pieces), 1 / len(LENGTHS), atol=0.02)


@pytest.mark.parametrize("ratio", [0.8, 1.0])
def test_segments_begin_anywhere_that_leaves_enough_music(train, ratio):
    config = dataclasses.replace(CONFIG, min_segment_ratio=ratio, sample_on_duration=False)
    pieces, starts, lengths = drawn(train, config)
    for piece, length in enumerate(LENGTHS):
        found, last = starts[pieces == piece], max(0, length - round(ratio * 100))
        assert found.min() <= last / 50
        assert 0.98 * last <= found.max() <= last
        assert found.mean() == pytest.approx(last / 2, rel=0.06), "every start is as likely"
    assert set(lengths[pieces == 2]) == {40}, "what is too short is there as it is"
    assert min(lengths[pieces != 2]) == round(ratio * 100)


def test_corpora_are_mixed_by_weight(directory, tmp_path):
    long = Corpus.open(write(tmp_path / "long", train=(1500, 1500)), "train")
    short = Corpus.open(directory, "train")
    both = {"sample_on_duration": True}
    as_one = drawn([long, short], dataclasses.replace(CONFIG, **both))[0]
    _, starts, _ = drawn([long, short], dataclasses.replace(CONFIG, weights=(1.0, 3.0), sample_on_duration=False))
    pieces = drawn([long, short], dataclasses.replace(CONFIG, weights=(1.0, 3.0)))[0]
    # Pieces 2 to 4 are only in the corpus `short`: 700 of its 2000 samples, of 5000 in all.
    assert np.mean(as_one >= 2) == pytest.approx(700 / 5000, abs=0.02)
    assert np.mean(pieces >= 2) == pytest.approx(0.75 * 700 / 2000, abs=0.02)
    assert np.mean(starts > 920) == pytest.approx(0.25 * 500 / 1420, abs=0.02), "only `long` has so late starts"


def test_validation_has_every_piece_in_order_and_is_always_the_same(valid):
    config = dataclasses.replace(CONFIG, batch_size=2)
    first = list(validation_batches(valid, config))
    assert [place for batch in first for place in places(batch)[0]] == [0, 1, 2, 3, 4, 0], "the last batch is filled up"
    assert_equal(list(validation_batches(valid, config)), first)
    halves = [list(validation_batches(valid, config, rows=[host])) for host in range(2)]
    assert_equal(joined(halves), first)


def test_validation_rounds_are_other_segments(valid):
    config = dataclasses.replace(CONFIG, batch_size=5, valid_rounds=40)
    found = list(validation_batches(valid, config))
    assert [list(places(batch)[0]) for batch in found] == [[0, 1, 2, 3, 4]] * 40
    assert len({int(places(batch)[1][1]) for batch in found}) > 35
    for batch in found:
        np.testing.assert_array_equal(batch["num_samples"], np.minimum(100, LENGTHS), "zeros only after short pieces")


def test_texts_are_token_ids_of_one_length(train):
    batch = next(batches(train, CONFIG, seed=0, conditions=BatchConditions(TEXT, encode)))
    assert (batch["text_ids"].shape, batch["text_ids"].dtype) == ((8, 16), np.int32)
    assert (batch["text_mask"].shape, batch["text_mask"].dtype) == ((8, 16), bool)
    found = take(batches(train, CONFIG, seed=0, conditions=BatchConditions(UNCHANGED, encode)), 50)
    nulls = 0
    for batch in found:
        for piece, ids, mask in zip(places(batch)[0], batch["text_ids"], batch["text_mask"], strict=True):
            expected = encode([f"piece {piece}" if mask.any() else None])
            np.testing.assert_array_equal(ids, expected[0][0])
            np.testing.assert_array_equal(mask, expected[1][0])
            nulls += not mask.any()
    assert nulls / 400 == pytest.approx(0.3, abs=0.08)


def test_texts_do_not_change_the_music(train):
    plain = take(batches(train, CONFIG, seed=0), 3)
    told = take(batches(train, CONFIG, seed=0, conditions=BatchConditions(TEXT, encode)), 3)
    assert_equal([{name: batch[name] for name in ("audio", "num_samples")} for batch in told], plain)


def test_long_texts_lose_their_end_but_still_end(train):
    config = dataclasses.replace(CONFIG, num_threads=0)
    text = dataclasses.replace(UNCHANGED, max_tokens=4)
    with pytest.warns(UserWarning, match="more tokens than max_tokens"):
        batch = next(batches(train, config, seed=0, conditions=BatchConditions(text, encode, dropout=NONE)))
    np.testing.assert_array_equal(batch["text_ids"], [[*encode(["pie"])[0][0, :3], 1]] * 8)
    assert batch["text_mask"].all()


def test_validation_texts_are_the_descriptions(valid):
    always = TextConfig(1.0, 1.0, 1.0, 0.9, max_tokens=16)
    (batch,) = validation_batches(valid, CONFIG, conditions=BatchConditions(always, encode))
    expected = encode([f"piece {i % 5}" for i in range(8)])
    np.testing.assert_array_equal(batch["text_ids"], expected[0])
    np.testing.assert_array_equal(batch["text_mask"], expected[1])


def test_stored_token_ids_serve_where_texts_are_unchanged(tmp_path):
    stored = write(tmp_path / "stored", dataclasses.replace(TOKENS, tokenizer="bytes"))
    train, valid = Corpus.open(stored, "train"), Corpus.open(stored, "valid")
    with_ids = take(batches(train, CONFIG, seed=0, conditions=BatchConditions(UNCHANGED)), 3)
    tokenized = batches(
        Corpus.open(write(tmp_path / "text", TOKENS)), CONFIG, seed=0, conditions=BatchConditions(UNCHANGED, encode)
    )
    assert_equal(with_ids, take(tokenized, 3))
    assert 0 < sum(not row.any() for batch in with_ids for row in batch["text_mask"]) < 24
    assert next(validation_batches(valid, CONFIG, conditions=BatchConditions(UNCHANGED)))["text_mask"].any(axis=1).all()
    with pytest.raises(DataError, match="need a tokenizer"):
        batches(train, CONFIG, seed=0, conditions=BatchConditions(TEXT))
    with pytest.raises(DataError, match="not those of this run's text encoder"):
        batches(
            train, CONFIG, seed=0, conditions=BatchConditions(UNCHANGED, lambda texts: encode(["x" for _ in texts]))
        )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_corpus_is_named_with_the_piece(tmp_path, workers):
    directory = write(tmp_path / "damaged", train=(1500,))
    path = shard_path(directory, "audio", "train", 0, 1)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    iterator = batches(Corpus.open(directory, "train"), dataclasses.replace(CONFIG, num_workers=workers), seed=0)
    with pytest.raises(DataError, match=r"piece 0 of .*damaged \(train\) cannot be read.* 1 of 1 pieces .* more than"):
        take(iterator, 20)
    iterator.close()


def test_others_are_drawn_in_the_place_of_a_damaged_piece(tmp_path, caplog):
    directory = write(tmp_path / "damaged", valid=(800, 800, 800, 800))
    path = shard_path(directory, "audio", "valid", 0, 1)
    content = bytearray(path.read_bytes())
    sound = content.index(np.arange(ROOM + 400, ROOM + 405, dtype="<i2").tobytes())  # of piece 1
    content[sound - 500 : sound + 500] = bytes(1000)
    path.write_bytes(content)
    corpus = Corpus.open(directory, "valid")
    config = dataclasses.replace(CONFIG, max_bad=0.3, num_threads=0)  # with threads, the message may come later
    for read in (batches(corpus, config, seed=0), validation_batches(corpus, config)):
        found = [places(batch)[0] for batch in take(read, 1)]
        assert set(np.concatenate(found)) == {0, 2, 3}
        assert caplog.text.count("piece 1 of the corpus") == 1
        assert "others are drawn in its place" in caplog.text
        caplog.clear()
    with pytest.raises(
        DataError, match=r"1 of 4 pieces could not be read so far, more than data\.max_bad 0\.01 allows"
    ):
        next(validation_batches(corpus, CONFIG))


def test_what_cannot_be_read_together_is_refused(directory, tmp_path):
    one = Corpus.open(directory)
    other = Corpus.open(write(tmp_path / "other", describe_audio(2 * RATE, 1)))
    codes = Corpus.open(write(tmp_path / "codes", TOKENS))
    recoded = Corpus.open(write(tmp_path / "recoded", dataclasses.replace(TOKENS, codec_hash="cd")))
    with pytest.raises(DataError, match=r"same sample_rate.*audio: 100.*other: 200"):
        batches([one, other], CONFIG, seed=0)
    with pytest.raises(DataError, match=r"same kind"):
        batches([one, codes], CONFIG, seed=0)
    with pytest.raises(DataError, match=r"same codec_hash"):
        validation_batches([codes, recoded], CONFIG)
    with pytest.raises(DataError, match="no corpus to read"):
        batches([], CONFIG, seed=0)
    with pytest.raises(DataError, match="as many weights"):
        batches([one], dataclasses.replace(CONFIG, weights=(1.0, 2.0)), seed=0)


def test_what_cannot_be_drawn_is_refused(train):
    with pytest.raises(DataError, match=r"needs 12 s of music, but the longest piece has 10 s"):
        batches(train, dataclasses.replace(CONFIG, segment_seconds=15.0), seed=0)
    next(batches(train, dataclasses.replace(CONFIG, segment_seconds=12.5), seed=0))
    with pytest.raises(DataError, match=r"at least 0\.01"):
        batches(train, dataclasses.replace(CONFIG, segment_seconds=0.001), seed=0)
    with pytest.raises(DataError, match=r"rows of a batch of 8 are from 0 on"):
        batches(train, CONFIG, seed=0, rows=[7, 8])
    with pytest.raises(DataError, match=r"need a tokenizer"):
        batches(train, CONFIG, seed=0, conditions=BatchConditions(TEXT))
    with pytest.raises(DataError, match=r"after 3 batches: there are 1"):
        validation_batches(train, CONFIG).set_state({"num_batches": 3})


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 0},
        {"segment_seconds": 0.0},
        {"segment_seconds": float("nan")},
        {"min_segment_ratio": 0.0},
        {"min_segment_ratio": 1.1},
        {"weights": (1.0, -1.0)},
        {"num_workers": -1},
        {"prefetch": 0},
        {"valid_rounds": 0},
        {"shuffle": True},
    ],
)
def test_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        from_dict(DataConfig, values)
