"""Models and adapters that earlier code wrote: they load, are told to be the same, and play the same codes.

make.py measured how far ahead every code was when it was drawn: by 1e-3 at least, rounding is below 1e-5.
"""

import functools
import json

import numpy as np
import pytest
from cases import of_conditions, of_logits, of_melody, of_mini, of_text, streamed, tune
from doors import CODES, EXPECTED, FILES, MODELS, numbers

import mgjax

FORMS = {
    "text": {},
    "text-bfloat16": {},
    "text-int8": {},
    "text-huggingface": {},
    "text-audiocraft": {"text_encoder": str(MODELS / "text-huggingface")},
    "melody-huggingface": {},
    "conditions": {},
}
# Where a load folds weight norm, the hash depends on the compiler's rounding. These are of the code before, compiled
# without XLA's fusion emitters, as most tests are (conftest.py).
ROUNDED = {"melody-huggingface": "94516f36b0d5", "conditions": "fdc02919ae4c"}
CASES = [(form, "greedy") for form in FORMS if form != "conditions"]
CASES += [("conditions", case) for case in of_conditions()]


@pytest.fixture(scope="module")
def expected():
    return json.loads(EXPECTED.read_text())


@pytest.fixture(scope="module")
def codes():
    with np.load(CODES) as archive:
        return dict(archive)


@functools.cache
def model(form):
    return mgjax.load(MODELS / form, **FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_the_hashes_are_those_of_before(form, expected):
    rounded = expected["hashes"][form], [ROUNDED.get(form), expected["hashes"][form][1]]
    assert [model(form).hash, model(form).codec.hash] in rounded
    assert mgjax.load_codec(MODELS / form).hash == expected["hashes"][form][1]


@pytest.mark.parametrize(("form", "case"), CASES)
def test_the_codes_are_those_of_before(form, case, codes):
    calls = of_conditions() if form == "conditions" else of_melody() if form.startswith("melody") else of_text()
    assert np.array_equal(model(form).generate_codes(**calls[case]), codes[f"{form}: {case}"])


def test_an_adapter(codes, expected):
    adapted = mgjax.load(MODELS / "text", adapter=FILES / "adapter")
    assert [adapted.hash, adapted.codec.hash] == expected["hashes"]["text with adapter"]
    greedy = codes["text with adapter: greedy"]
    assert np.array_equal(adapted.generate_codes(**of_text()["greedy"]), greedy)
    logits = np.asarray(adapted.logits(greedy, "a waltz"))
    for weights, most in (("bfloat16", 0.05), ("int8", 0.2)):
        rounded = mgjax.load(MODELS / "text", adapter=FILES / "adapter", weights=weights)
        error = np.abs(np.asarray(rounded.logits(greedy, "a waltz")) - logits).max() / logits.std()
        assert 1e-4 < error < most, error  # measured 0.007 and 0.029


def test_a_stream(codes, expected):
    asked = streamed()
    pieces = list(model("text").stream_codes(**asked))
    assert [piece.shape[1] for piece in pieces] == expected["stream"]["pieces"]
    assert np.array_equal(np.concatenate(pieces, axis=1), codes["text: stream"])
    sound = np.concatenate(list(model("text").stream(**asked)), axis=1)
    np.testing.assert_allclose(numbers(sound), expected["stream"]["sound"], atol=1e-5)  # measured 0


def test_the_codec(codes, expected):
    codec = mgjax.load_codec(MODELS / "text")
    assert np.array_equal(codec.encode(tune(0.5)), codes["text: encoded"])
    found = numbers(codec.decode(codes["text: encoded"].astype(np.int32)))
    np.testing.assert_allclose(found, expected["decoded"], atol=1e-5)  # measured 0


def test_logits(codes, expected):
    found = {
        "text": numbers(model("text").logits(codes["text: greedy"], "slow waltz")),
        "conditions": numbers(model("conditions").logits(codes["conditions: rows"][:1], "slow waltz", **of_logits())),
    }
    for name, values in found.items():  # of a standard deviation of about 1
        np.testing.assert_allclose(values, expected["logits"][name], atol=1e-5, err_msg=name)  # measured 0


def test_mini(codes, expected):
    """Greedy, and drawn as it draws by itself from three seeds."""
    bundled = mgjax.load("mini")
    assert (bundled.hash, bundled.codec.hash) == (expected["mini"]["hash"], expected["mini"]["codec"])
    assert np.array_equal(bundled.generate_codes(**of_mini()), codes["mini"])


def test_nothing_is_near_a_tie(expected):
    """What makes the codes above a matter of more than rounding."""
    margins = [expected["mini"]["margins"], expected["recipe"]["margins"], *expected["margins"].values()]
    assert min(map(min, margins)) > 1e-3
