"""A run goes on with what it started with, or says what is different."""

import dataclasses

import jax.numpy as jnp
import pytest
from test_lm import DEBUG, RUN, on
from test_loop import CONFIG, Rows, line, valid

from mgjax.config.serialization import ConfigError
from mgjax.train import lm
from mgjax.train.checkpoints import Checkpoints
from mgjax.train.inputs import InputHashes
from mgjax.train.lm import training
from mgjax.train.loop import fit
from mgjax.train.state import TrainState

BEFORE = {"codec": "c1", "train split of tokens": ["a", "b"], "init": "w1"}


def check(before, may_grow=False, **changes):
    return InputHashes({**BEFORE, **changes}, may_grow).check(before, "runs/a")


def test_the_same_goes_on():
    assert check(dict(BEFORE)) == ""


def test_what_is_not_known_is_reported():
    assert "are not compared" in check(None)
    assert check({}) == ""  # of a part that no checkpoint knows nothing can be said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "c2"}, "started with another codec than is there now"),
        ({"codec": "c2", "init": "w2"}, "another codec and another init"),
        ({"train split of tokens": ["a", "x"]}, "another train split of tokens"),
        ({"train split of tokens": ["a"]}, "another train split of tokens"),
        ({"train split of tokens": ["x", "a", "b"]}, "another train split of tokens"),
        ({"train split of tokens": ["a", "b", "c"]}, "the train split of tokens has grown .* set data.may_grow"),
    ],
)
def test_something_else_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check(BEFORE, **changes)


def test_a_corpus_may_grow_where_that_is_asked_for():
    more = {"train split of tokens": ["a", "b", "c"]}
    assert check(BEFORE, may_grow=True, **more) == "; the train split of tokens has grown"
    with pytest.raises(ConfigError, match="another codec"):
        check(BEFORE, may_grow=True, codec="c2", **more)


def test_checkpoints_keep_it(tmp_path, capfd, monkeypatch):
    config = dataclasses.replace(CONFIG, steps=2, eval_every=0)
    fit(line(), Rows(), valid, config, tmp_path, inputs=InputHashes({"codec": "c1"}))
    longer = dataclasses.replace(config, steps=3)
    with pytest.raises(ConfigError, match="another codec"):
        fit(line(), Rows(), valid, longer, tmp_path, inputs=InputHashes({"codec": "c2"}))
    latest = Checkpoints.latest
    older = lambda self, *given: dataclasses.replace(latest(self, *given), inputs=None)  # noqa: E731
    monkeypatch.setattr(Checkpoints, "latest", older)
    fit(line(), Rows(), valid, longer, tmp_path, inputs=InputHashes({"codec": "c2"}))
    assert "goes on from the checkpoint of step 2, which does not hold the hashes" in capfd.readouterr().err


def test_a_run_knows_its_inputs(corpus, monkeypatch):
    """By what they are: the parts of a model that is gone on from, and the corpora."""
    given, state = [], TrainState(jnp.int32(0), {}, {}, None, {})
    monkeypatch.setattr(training, "fit", lambda *_, **named: given.append(named["inputs"]) or state)
    lm.run(on(corpus), "never")
    lm.run(on(corpus, lm=DEBUG.lm, text_encoder="debug"), "never")
    first, second = (inputs.hashes for inputs in given)
    splits = {f"{split} split of {corpus}" for split in ("train", "valid")}
    assert set(first) == {"codec", "vocabulary", "init", *splits}
    assert set(second) == {*first, "text_encoder"}
    assert {name for name in first if first[name] != second[name]} == {"init"}  # of another language model
    data = dataclasses.replace(on(corpus).data, may_grow=True)
    lm.run(dataclasses.replace(RUN, data=data), "never")
    assert given[-1].may_grow
