"""Whole models against transformers: the same directory, the same predictions, the same music."""

import numpy as np
import pytest
import torch

import mgjax
from mgjax.lm import pattern as patterns

PROMPTS = ["slow waltz", "80s synth pop with driving drums and heavy guitar", "accordion"]
FORMS = [
    pytest.param({}, id="text"),
    pytest.param({"stereo": True}, id="stereo"),
    pytest.param({"flan": True}, id="flan"),
    pytest.param({"stereo": True, "flan": True}, id="stereo-flan"),
]
GREEDY = {"temperature": 0.0, "top_k": 0}


def tokens(model, texts):
    """Ids and mask for transformers, without the bucket's padding."""
    ids, mask = model._tokenizer.encode(texts)
    longest = mask.sum(axis=1).max()
    return torch.tensor(ids[:, :longest]).long(), torch.tensor(mask[:, :longest]).long()


def theirs(reference, model, codes, texts, **inputs):
    """Logits [b, t, k, v] of transformers for codes [b, t, k]: laid out with delays, read where each is predicted."""
    b, t, k = codes.shape
    layout = patterns.from_config(model.config.lm).layout(t)
    laid_out = np.where(layout >= 0, codes[:, layout, np.arange(k)], model.codebook_size)
    flat = torch.tensor(laid_out.transpose(0, 2, 1).reshape(b * k, -1)).long()
    ids, mask = tokens(model, texts)
    with torch.no_grad():
        logits = reference(input_ids=ids, attention_mask=mask, decoder_input_ids=flat, **inputs).logits
    logits = logits.reshape(b, k, -1, model.codebook_size)[:, :, -len(layout) :].numpy()
    delays = np.array(model.config.lm.delays)
    return logits[:, np.arange(k), np.arange(t)[:, None] + delays]


def random_codes(model, b, t):
    return np.random.default_rng(1).integers(0, model.codebook_size, (b, t, model.num_codebooks)).astype(np.int32)


@pytest.mark.parametrize("form", FORMS)
def test_logits_equal_those_of_transformers(build, form):
    """A batch of texts of different lengths, teacher-forced."""
    reference, directory = build(**form)
    model = mgjax.load(directory)
    codes = random_codes(model, len(PROMPTS), 40)
    expected = theirs(reference, model, codes, PROMPTS)
    error = np.abs(np.asarray(model.logits(codes, PROMPTS)) - expected).max()
    assert expected.std() > 1.0
    assert error < 1e-4, error


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_greedy_codes_equal_those_of_transformers(build, form, guidance, monkeypatch):
    reference, directory = build(**form)
    model = mgjax.load(directory)
    num_frames = 150
    seconds = num_frames / model.frame_rate
    ids, mask = tokens(model, PROMPTS)
    decoded = []
    decode = reference.audio_encoder.decode
    monkeypatch.setattr(
        reference.audio_encoder, "decode", lambda codes, *a, **kw: decoded.append(codes) or decode(codes, *a, **kw)
    )
    max_delay = max(model.config.lm.delays)
    with torch.no_grad():
        # transformers counts steps, and holds back one for each mono codebook but the first.
        steps = num_frames + model.config.codec.num_codebooks - 1
        audio = reference.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, guidance_scale=guidance, max_new_tokens=steps
        )
    expected = np.stack([codes.numpy()[0] for codes in decoded])  # left and right apart, where stereo
    expected = expected.reshape(-1, len(PROMPTS), *expected.shape[-2:]) if False else expected
    sampling = mgjax.Sampling(**GREEDY, guidance=guidance)
    codes = model.generate_codes(PROMPTS, seconds=seconds, sampling=sampling)
    assert codes.shape == (len(PROMPTS), num_frames, model.num_codebooks)
    print([c.shape for c in decoded], audio.shape, max_delay)
    streams = model.num_codebooks // model.config.codec.num_codebooks
    for stream in range(streams):
        mine = codes[:, :, stream::streams].transpose(0, 2, 1)
        assert np.array_equal(mine, decoded[stream].numpy()[0])
    assert len(np.unique(codes)) > 10
    made = model.generate(PROMPTS, seconds=seconds, sampling=sampling)
    assert np.abs(made.transpose(0, 2, 1) - audio.numpy()).max() < 1e-4
