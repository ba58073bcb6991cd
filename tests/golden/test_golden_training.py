"""Corpora and checkpoints of runs that earlier code wrote: the same batches, and runs that go on as they would have."""

import json
from pathlib import Path

import numpy as np
import pytest
from doors import EXPECTED, MODELS, first_batches, metrics, one_device, sources, summary, train, unpack, weights

import mgjax


@pytest.fixture(scope="module")
def expected():
    return json.loads(EXPECTED.read_text())


@pytest.mark.parametrize("corpus", ["sound", "tokens"])
def test_batches_are_those_of_before(corpus, expected, tmp_path):
    unpack("corpora", tmp_path)
    found = {
        f"{corpus} {name}": {key: summary(array) for key, array in batch.items()}
        for name, batch in first_batches(tmp_path / corpus, mgjax.load(MODELS / "conditions"))
    }
    assert found == {name: batch for name, batch in expected["batches"].items() if name.startswith(corpus)}


@pytest.mark.parametrize("kind", ["lm", "codec"])
def test_a_run_goes_on_from_its_second_step(kind, expected, tmp_path, monkeypatch, capfd):
    """Weights, averages, the optimiser's state and schedule, the place in the data, the drawing of dropout: all count.

    On the machine that wrote them, the numbers are the same bits. Other processors round sums differently; two steps
    make little of that, and what is forgotten shows by far: weights move by 1e-2 in a step.
    """
    sources(tmp_path)
    unpack(f"run-{kind}", tmp_path)
    monkeypatch.chdir(tmp_path)
    known = expected[f"run {kind}"]
    with one_device():
        train(kind, "debug", known["settings"], kind)
    assert "goes on from the checkpoint of step 2" in capfd.readouterr().err
    found = metrics(Path(kind), 2)
    assert [(line["step"], line["split"]) for line in found] == [
        (line["step"], line["split"]) for line in known["metrics"]
    ]
    for ours, theirs in zip(found, known["metrics"], strict=True):
        assert ours["values"] == pytest.approx(theirs["values"], rel=1e-4, abs=1e-6), (ours["step"], ours["split"])
    made = weights(Path(kind, "model"))
    assert made.keys() == known["weights"].keys()
    for name in made:
        np.testing.assert_allclose(made[name], known["weights"][name], rtol=1e-4, atol=1e-5, err_msg=name)
