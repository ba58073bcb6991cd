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
    ids, mask = model.tokenizer.encode(texts)
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
    assert error < 1e-5, error  # measured 2.6e-6


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_in_fewer_bits_predict_nearly_the_same(build, form, weights):
    """Teacher-forced beside float32; and what is generated step by step is what they predict."""
    _, directory = build(**form)
    exact, model = mgjax.load(directory), mgjax.load(directory, weights=weights, cache=weights)
    codes = random_codes(model, len(PROMPTS), 40)
    expected = np.asarray(exact.logits(codes, PROMPTS))
    error = np.abs(np.asarray(model.logits(codes, PROMPTS)) - expected).max() / expected.std()
    assert 1e-4 < error < {"bfloat16": 0.05, "int8": 0.2}[weights], error  # measured 0.019 and 0.070
    greedy = model.generate_codes(PROMPTS, seconds=0.8, sampling=mgjax.Sampling(guidance=1.0, **GREEDY))
    predicted = np.asarray(model.logits(greedy, PROMPTS)).argmax(-1)
    assert np.mean(predicted == greedy) > 0.97  # where two codes are as likely, the cache's rounding decides


# Every form, and each way of guidance in mono and in stereo.
@pytest.mark.parametrize(
    ("form", "guidance"),
    [
        pytest.param(form.values[0], guidance, id=f"{form.id}-{guidance}")
        for form, guidance in zip([*FORMS, *FORMS[:2]], [3.0, 3.0, 1.0, 3.0, 1.0, 1.0], strict=True)
    ],
)
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
    with torch.no_grad():
        # transformers counts steps, and holds back one for each mono codebook but the first.
        steps = num_frames + model.config.codec.num_codebooks - 1
        audio = reference.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, guidance_scale=guidance, max_new_tokens=steps
        )
    sampling = mgjax.Sampling(**GREEDY, guidance=guidance)
    codes = model.generate_codes(PROMPTS, seconds=seconds, sampling=sampling)
    assert codes.shape == (len(PROMPTS), num_frames, model.num_codebooks)
    # transformers decodes left and right apart.
    streams = model.num_codebooks // model.config.codec.num_codebooks
    for stream in range(streams):
        mine = codes[:, :, stream::streams].transpose(0, 2, 1)
        assert np.array_equal(mine, decoded[stream].numpy()[0])
    assert len(np.unique(codes)) > 10
    made = model.generate(PROMPTS, seconds=seconds, sampling=sampling)
    assert np.abs(made.transpose(0, 2, 1) - audio.numpy()).max() < 1e-5  # measured 1.2e-7


@pytest.fixture(params=[False, True], ids=["mono", "stereo"])
def melody(build, request):
    reference, directory = build(melody=True, stereo=request.param)
    return reference, mgjax.load(directory)


def test_melody_logits_equal_those_of_transformers(melody):
    """One text and one chromagram before the music; a batch is as many such rows."""
    reference, model = melody
    config = model.config.melody
    codes = random_codes(model, 2, 30)
    chroma = np.random.default_rng(2).random((2, config.num_frames, config.num_bins), np.float32)
    logits = np.asarray(model.logits(codes, PROMPTS[:2], chroma=chroma))
    for row in range(2):
        one = slice(row, row + 1)
        features = torch.tensor(chroma[one])
        expected = theirs(reference, model, codes[one], PROMPTS[one], input_features=features)
        error = np.abs(logits[one] - expected).max()
        assert error < 1e-5, error  # measured 2.6e-6
    assert np.abs(logits - np.asarray(model.logits(codes, PROMPTS[:2]))).max() > 0.1


def test_melody_batches_can_be_those_of_the_original(build):
    """With compat="audiocraft" padding moves the music and is attended to, as transformers does in melody models."""
    reference, directory = build(melody=True)
    model = mgjax.load(directory, compat="audiocraft")
    config = model.config.melody
    codes = random_codes(model, 3, 20)
    chroma = np.zeros((3, config.num_frames, config.num_bins), np.float32)
    chroma[:, :, 0] = 1  # the null melody
    expected = theirs(reference, model, codes, PROMPTS, input_features=torch.tensor(chroma))
    error = np.abs(np.asarray(model.logits(codes, PROMPTS)) - expected).max()
    assert error < 1e-5, error  # measured 2.6e-6


def test_cross_attention_can_attend_to_padding_as_the_original_does(build):
    """transformers with a mask of ones over vectors that are zero at padding computes what audiocraft does."""
    reference, directory = build()
    model = mgjax.load(directory, compat="audiocraft")
    codes = random_codes(model, 3, 20)
    ids, mask = tokens(model, PROMPTS)
    with torch.no_grad():
        hidden = reference.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        hidden = reference.enc_to_dec_proj(hidden) * mask[..., None]
    b, t, k = codes.shape
    layout = patterns.from_config(model.config.lm).layout(t)
    laid_out = np.where(layout >= 0, codes[:, layout, np.arange(k)], model.codebook_size)
    with torch.no_grad():
        logits = reference.decoder(
            input_ids=torch.tensor(laid_out.transpose(0, 2, 1).reshape(b * k, -1)).long(),
            encoder_hidden_states=hidden,
            encoder_attention_mask=torch.ones_like(mask),
        ).logits
    logits = logits.reshape(b, k, -1, model.codebook_size).numpy()
    expected = logits[:, np.arange(k), np.arange(t)[:, None] + np.array(model.config.lm.delays)]
    error = np.abs(np.asarray(model.logits(codes, PROMPTS)) - expected).max()
    assert error < 1e-5, error  # measured 2.6e-6
    masked = np.asarray(mgjax.load(directory).logits(codes, PROMPTS))
    assert np.abs(masked - expected).max() > 0.01


@pytest.mark.parametrize(("guidance", "asked"), [(3.0, True), (3.0, False), (1.0, True)])
def test_melody_greedy_codes_equal_those_of_transformers(melody, guidance, asked, monkeypatch):
    reference, model = melody
    ids, mask = tokens(model, PROMPTS[:1])
    num_frames = 60
    chroma = None
    if asked:
        chroma = np.eye(12, dtype=np.float32)[np.random.default_rng(3).integers(0, 12, (1, 7))]
    decoded = []
    decode = reference.audio_encoder.decode
    monkeypatch.setattr(
        reference.audio_encoder, "decode", lambda codes, *a, **kw: decoded.append(codes) or decode(codes, *a, **kw)
    )
    with torch.no_grad():
        reference.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            guidance_scale=guidance,
            max_new_tokens=num_frames + model.config.codec.num_codebooks - 1,
            **({"input_features": torch.tensor(chroma)} if asked else {}),
        )
    sampling = mgjax.Sampling(**GREEDY, guidance=guidance)
    seconds = num_frames / model.frame_rate
    codes = model.generate_codes(PROMPTS[:1], seconds=seconds, sampling=sampling, chroma=chroma)
    assert len(decoded) == model.channels  # transformers decodes left and right apart
    for side, theirs_alone in enumerate(decoded):
        assert np.array_equal(codes[..., side :: model.channels].transpose(0, 2, 1), theirs_alone.numpy()[0])
    if asked:
        assert not np.array_equal(codes, model.generate_codes(PROMPTS[:1], seconds=seconds, sampling=sampling))
