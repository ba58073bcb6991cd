"""A style model from audiocraft's files to music: what is read and written, what the style does, what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_audiocraft as tiny
import torch
import transformers
import yaml
from flax.traverse_util import flatten_dict

import mgjax
from mgjax.checkpoints import audiocraft, audiocraft_config, random_weights, sources
from mgjax.checkpoints.files.torch_file import CheckpointError
from mgjax.checkpoints.native import Checkpoint
from mgjax.checkpoints.tables import hubert, matching
from mgjax.conditioning.excerpts import prepare
from mgjax.conditioning.hubert import Hubert
from mgjax.conditioning.provider import ConditioningInputs, Span
from mgjax.conditioning.style import StyleConditioner
from mgjax.config.conditioning import HubertConfig, StyleConfig
from mgjax.config.model import Sampling
from mgjax.generation.sampling import make_context
from mgjax.lm import pattern as patterns
from mgjax.nn import jit_apply

DIM = 256  # of audiocraft's smallest style conditioner
STYLE = {
    "model_name": "mert", "transformer_scale": "xsmall", "encodec_n_q": 3, "length": 0.5, "ds_factor": 15, "n_q_out": 4,
    "eval_q": 2, "bins": 20,
}  # fmt: skip
GREEDY = Sampling(temperature=0.0)
WORDS = ["piano", "drums", "loud"]


def conditioner(codes=None):
    """The arrays of a style conditioner that reads features of width 16, or this many codebooks."""
    noise = torch.Generator().manual_seed(2)

    def random(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=noise)

    state = {"embed.weight": random(DIM, 16, scale=0.3), "embed.bias": random(DIM)}
    if codes:
        state = {f"embed.{k}.weight": random(tiny.CODES, DIM) for k in range(codes)}
    for i in range(4):
        there = f"transformer.layers.{i}"
        state[f"{there}.self_attn.in_proj_weight"] = random(3 * DIM, DIM, scale=DIM**-0.5)
        state[f"{there}.self_attn.out_proj.weight"] = random(DIM, DIM, scale=DIM**-0.5)
        state[f"{there}.linear1.weight"] = random(4 * DIM, DIM, scale=DIM**-0.5)
        state[f"{there}.linear2.weight"] = random(DIM, 4 * DIM, scale=(4 * DIM) ** -0.5)
        for norm in ("norm1", "norm2"):
            state |= {f"{there}.{norm}.weight": torch.ones(DIM), f"{there}.{norm}.bias": random(DIM, scale=0.1)}
    state |= {"batch_norm.running_mean": random(DIM, scale=0.1), "batch_norm.running_var": torch.full((DIM,), 2.0)}
    state["batch_norm.num_batches_tracked"] = torch.tensor(7)
    state |= tiny.quantizer("rvq", 4, 20, DIM)
    return {f"{tiny.CONDITIONER}.self_wav.{name}": value for name, value in state.items()}


def write(directory, codes=None, **style):
    state = tiny.language_model({"self_wav": DIM, "description": 16}) | conditioner(codes)
    conditioners = {"self_wav": {"model": "style", "style": STYLE | style}}
    conditioners["description"] = {"model": "t5", "t5": {"name": "t5-tiny"}}
    run = tiny.run(conditioners, {"prepend": ["self_wav", "description"]})
    return tiny.write(directory, state, run)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """The directories of a tiny T5 and of a tiny MERT."""
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, conv_dim=(8, 8),
        conv_kernel=(10, 3), conv_stride=(5, 2), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    model = transformers.HubertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    mert = tiny.save(model, tmp_path_factory.mktemp("mert"))
    front = {"do_normalize": True, "sampling_rate": 1000}
    (mert / "preprocessor_config.json").write_text(json.dumps(front))
    t5 = tiny.t5(tmp_path_factory.mktemp("t5"), WORDS)
    return {"text_encoder": str(t5), "style_encoder": str(mert)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("style") / "model")


@pytest.fixture(scope="module")
def model(files, encoders):
    return mgjax.load(files, **encoders)


@pytest.fixture(scope="module")
def of_codes(tmp_path_factory, encoders):
    """The same, but the style conditioner reads the codec's codes."""
    directory = write(tmp_path_factory.mktemp("codes") / "model", codes=3, model_name="encodec", ds_factor=25)
    return mgjax.load(directory, text_encoder=encoders["text_encoder"])


def noise(seconds, seed=0, rate=tiny.RATE):
    """Music that is nowhere alike."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)


CODES = np.random.default_rng(0).integers(0, tiny.CODES, (1, 12, 4)).astype(np.int32)


def logits(model, texts=None, codes=CODES, **asked):
    return np.asarray(model.logits(codes, texts, **asked))


def test_what_the_files_say(model, files, encoders):
    config = model.config
    fused = [(one.name, one.dim, one.fuse) for one in config.lm.conditions]
    assert fused == [("style", DIM, "prefix"), ("text", 16, "prefix")]
    features = matching.read(hubert.match_hubert(Path(encoders["style_encoder"])))[0]
    assert features.normalize
    assert config.style == StyleConfig(
        dataclasses.replace(features, normalize=False), 3, tiny.CODES, DIM, 1024, 4, 8, 4, 20, 2, 15, 0.5
    )
    assert config.sampling == Sampling(guidance=3.0)
    known = audiocraft.read_config(files, fetch={"t5-tiny": Path(encoders["text_encoder"])}.__getitem__)
    assert known.style == dataclasses.replace(config.style, features=HubertConfig(normalize=False))
    beta = {"classifier_free_guidance": {"inference_coef": 2.0}, "generate": {"lm": {"cfg_coef_beta": 5}}}
    parts = {"text": config.text, "style": config.style}
    described = audiocraft_config.model_config(files, beta, config.lm, config.codec, **parts)
    assert described.sampling == Sampling(guidance=2.0, text_guidance=5.0)


def test_the_style_stands_before_the_text_and_the_music(model, encoders):
    """The logits are those of the parts put together by hand."""
    style = noise(0.5, rate=1000)  # all of it is the excerpt
    config, variables = matching.read(hubert.match_hubert(Path(encoders["style_encoder"])))
    kept = {name: model._params["style"][name] for name in ("params", "batch_stats", "codebooks")}

    @jax.jit
    def by_hand(variables, kept, projection, sound):
        features = Hubert(dataclasses.replace(config, normalize=False)).apply({"params": variables}, sound)
        vectors = StyleConditioner(model.config.style).apply(kept, features)
        return vectors, vectors @ projection["kernel"] + projection["bias"][None, None]

    vectors, prefix = by_hand(variables, kept, model._params["lm"]["style_proj"], style[None])
    assert vectors.shape == (1, 4, DIM)
    sets = [[ConditioningInputs(style=np.asarray(vectors[0]), text="piano")]]
    context = context_of(model, sets, ["piano"])
    assert np.abs(context.prefix[:, :4] - prefix).max() < 1e-4  # measured 0 at a standard deviation of 2.2
    assert np.array_equal(np.asarray(context.prefix_mask)[0, :6], [True] * 6)  # four vectors, "piano", its end
    assert not np.asarray(context.prefix_mask)[0, 6:].any()
    right = teacher_forced(model, CODES, sets, ["piano"])
    found = logits(model, "piano", style=style, style_sample_rate=1000)
    error = np.abs(right - found).max()
    assert error < 1e-4, error  # measured 3.1e-6 at a standard deviation of 2.4


def context_of(model, sets, texts):
    conditions = model._conditioner.conditions(sets, model._conditioner.encode(texts), Span(0.0, 2.0, False))
    return make_context(model._lm, model._params["lm"], conditions, len(sets) * len(sets[0]))


def teacher_forced(model, codes, sets, texts):
    """Logits of the sets of rows, one after the other."""
    context = context_of(model, sets, texts)
    pattern = patterns.from_config(model.config.lm)
    tokens = pattern.build(jnp.asarray(np.concatenate([codes] * len(sets))), model.config.lm.special_token)
    found = jit_apply(model._lm, {"params": model._params["lm"]}, tokens, context)
    return np.asarray(pattern.revert_logits(found, codes.shape[1])[0])


def test_double_guidance_is_the_published_formula(model):
    asked = dict(seconds=0.06, style=noise(0.5), style_sample_rate=tiny.RATE)
    sampling = dataclasses.replace(GREEDY, guidance=3.0, text_guidance=4.0)
    codes = model.generate_codes("piano", sampling=sampling, **asked)
    excerpts = prepare(asked["style"], tiny.RATE, [0], model.config)
    [vectors] = model._conditioner.styles(excerpts, model._encode_mono)
    sets = [
        [ConditioningInputs(style=vectors, text="piano")],
        [ConditioningInputs(style=vectors)],
        [ConditioningInputs()],
    ]
    context = context_of(model, sets, ["piano"])
    # What is not there stands as zeros where it would: the music keeps its place.
    assert np.asarray(context.prefix_mask)[:, :6].all()
    assert np.abs(context.prefix[1, :4] - context.prefix[0, :4]).max() == 0
    assert not np.asarray(context.prefix[1, 4:]).any()
    assert not np.asarray(context.prefix[2]).any()
    full, style, null = teacher_forced(model, codes, sets, ["piano"])
    assert np.array_equal(np.argmax(null + 3 * (style + 4 * (full - style) - null), axis=-1), codes[0])
    plain = dataclasses.replace(sampling, text_guidance=1.0)
    assert not np.array_equal(model.generate_codes("piano", sampling=plain, **asked), codes)


@pytest.mark.parametrize("form", ["model", "of_codes"])
def test_the_style_acts(form, request):
    model = request.getfixturevalue(form)
    one, other = (logits(model, "piano", style=noise(0.5, seed)) for seed in (1, 2))
    none = logits(model, "piano")
    assert np.abs(one - other).max() > 0.1
    assert np.abs(one - none).max() > 0.1
    assert np.abs(one - logits(model, "drums", style=noise(0.5, 1))).max() > 0.1


def test_no_style_is_an_absent_one(model):
    """Two rows: what one of them has is nothing to the other."""
    codes, texts = np.repeat(CODES, 2, axis=0), ["piano", "loud drums"]
    for null in (None, [None], [None, None]):
        assert np.array_equal(logits(model, texts, codes), logits(model, texts, codes, style=null))
    alone = logits(model, texts, codes)
    beside = logits(model, texts, codes, style=[noise(0.5), None])
    error = np.abs(beside[1] - alone[1]).max()
    assert error < 1e-3, error  # measured 1.2e-6 at a standard deviation of 2.4
    assert np.abs(beside[0] - alone[0]).max() > 0.1


def test_a_style_comes_at_any_rate_and_in_any_form(model):
    style = noise(0.5, rate=1000)
    right = logits(model, style=style, style_sample_rate=1000)
    stereo = np.stack([style, style], axis=1)
    for form in (style[:, None], stereo, stereo[None], [style], style.astype(np.float64)):
        assert np.array_equal(logits(model, style=form, style_sample_rate=1000), right)
    slow = np.sin(2 * np.pi * 50 * np.arange(1000) / 2000).astype(np.float32)
    excerpts = [prepare(slow[::step], 2000 // step, [0], model.config)[0] for step in (1, 2)]
    assert excerpts[0].shape == excerpts[1].shape == (500,)
    assert np.abs(excerpts[0] - excerpts[1])[50:-50].max() < 1e-3  # measured 5.3e-5; the filter rings at the ends
    short = noise(0.2)
    repeated = np.concatenate([short] * 3)[: round(0.5 * tiny.RATE)]
    assert np.array_equal(logits(model, style=short), logits(model, style=repeated))


def test_the_seed_chooses_the_excerpt(model):
    asked = dict(style=noise(4.0), seconds=0.05, sampling=dataclasses.replace(GREEDY, guidance=1.0))
    rows = model.generate_codes([None] * 3, seed=[5, 6, 5], **asked)
    assert np.array_equal(rows[0], rows[2])
    assert not np.array_equal(rows[0], rows[1])
    for number, seed in enumerate([5, 6]):
        codes = rows[number : number + 1]
        likeliest = np.argmax(logits(model, codes=codes, style=asked["style"], seed=seed), axis=-1)
        assert np.array_equal(likeliest, codes)


def flat(tree):
    return {"/".join(path): np.asarray(array) for path, array in flatten_dict(tree).items()}


@pytest.mark.parametrize("form", ["model", "of_codes"])
def test_saved_and_loaded(form, request, tmp_path):
    model = request.getfixturevalue(form)
    model.save(tmp_path / "mine")
    loaded = mgjax.load(tmp_path / "mine")
    assert loaded.config == dataclasses.replace(model.config, codec=model.codec.folded_config)
    right = logits(model, "piano", style=noise(0.5))
    assert np.array_equal(logits(loaded, "piano", style=noise(0.5)), right)
    assert ("features" in loaded._params["style"]) == (form == "model")
    half = mgjax.load(tmp_path / "mine", dtype="bfloat16")
    types = {name: array.dtype.name for name, array in flat(half._params).items()}
    assert {kind for name, kind in types.items() if name.startswith("style/")} == {"float32"}
    assert {kind for name, kind in types.items() if not name.startswith("style/")} == {"bfloat16"}
    with pytest.raises(CheckpointError, match=r"transformers has no model of this kind.*mgjax form"):
        model.save(tmp_path / "theirs", format="huggingface")


def test_written_as_read(of_codes, files, tmp_path):
    """The published names and values go back into audiocraft's files, and their xp.cfg says the same."""
    of_codes.save(tmp_path / "written", format="audiocraft", text_encoder="t5-tiny")
    package = torch.load(tmp_path / "written" / "state_dict.bin", weights_only=True)
    state = tiny.language_model({"self_wav": DIM, "description": 16}) | conditioner(codes=3)
    del state[f"{tiny.CONDITIONER}.self_wav.batch_norm.num_batches_tracked"]
    assert package["best_state"].keys() == state.keys()
    for name, value in package["best_state"].items():
        assert torch.equal(value, state[name]), name
    run = yaml.safe_load(package["xp.cfg"])
    assert run["fuser"]["prepend"] == ["self_wav", "description"]
    assert run["conditioners"]["self_wav"]["style"].items() >= {"transformer_scale": "xsmall", "eval_q": 2}.items()
    fetch = {"t5-tiny": of_codes._tokenizers["tokenizer"]}.__getitem__
    again = audiocraft.read_model(tmp_path / "written", fetch=fetch)
    codec = of_codes.codec.folded_config
    assert dataclasses.replace(again.config, codec=codec) == dataclasses.replace(of_codes.config, codec=codec)


def test_published_sizes_are_written_with_mert_by_name(model, tmp_path):
    style = dataclasses.replace(model.config.style, features=HubertConfig(normalize=False))
    sampling = Sampling(guidance=2.0, text_guidance=5.0)
    config = dataclasses.replace(model.config, style=style, sampling=sampling, codec=model.codec.folded_config)
    encoder = model._params["style"]["params"]["encoder"]
    encoder = encoder | {"embed": {"kernel": jnp.ones((768, DIM)), "bias": jnp.ones(DIM)}}
    variables = {**model._checkpoint().variables, "style": model._params["style"] | {"params": {"encoder": encoder}}}
    given = Checkpoint(config, variables)
    audiocraft.write_model(tmp_path / "model", given, text_encoder="t5-tiny")
    fetch = {"t5-tiny": model._tokenizers["tokenizer"]}.__getitem__
    read = audiocraft.read_config(tmp_path / "model", fetch=fetch)
    assert (read.style, read.sampling) == (config.style, config.sampling)
    with pytest.raises(CheckpointError, match=r"audiocraft has no such style conditioner.*MERT-v1-95M.*mgjax form"):
        model.save(tmp_path / "other", format="audiocraft", text_encoder="t5-tiny")


def test_files_that_do_not_fit(files, encoders, tmp_path):
    wide = transformers.HubertConfig(
        hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, conv_dim=(8,),
        conv_kernel=(10,), conv_stride=(5,), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    tiny.save(transformers.HubertModel(wide), tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"features of width 16.*gives width 24; give style_encoder= another"):
        mgjax.load(files, **encoders | {"style_encoder": str(tmp_path / "wide")})
    with pytest.raises(CheckpointError, match="model_type is 't5'; expected 'hubert' or 'mert_model'"):
        mgjax.load(files, **encoders | {"style_encoder": encoders["text_encoder"]})
    with pytest.raises(CheckpointError, match="m-a-p/MERT-v1-95M: could not be fetched"):
        mgjax.load(files, text_encoder=encoders["text_encoder"])
    with pytest.raises(CheckpointError, match=r"of another shape.*rvq.vq.layers.0._codebook.embed .*\(21, 256\)"):
        mgjax.load(write(tmp_path / "bins", bins=21), **encoders)
    with pytest.raises(CheckpointError, match=r"missing \(8\): .*rvq.vq.layers.4"):
        mgjax.load(write(tmp_path / "levels", n_q_out=6), **encoders)
    codes = write(tmp_path / "codes", codes=5, model_name="encodec", encodec_n_q=5)
    with pytest.raises(CheckpointError, match="reads 5 codebooks of 24 codes, the codec has 4 of 24"):
        mgjax.load(codes, text_encoder=encoders["text_encoder"])
    whole = Checkpoint(random_weights.DEBUG, random_weights.random_variables(random_weights.DEBUG))
    sources.write(tmp_path / "whole", whole)
    with pytest.raises(ValueError, match="comes whole: leave style_encoder out"):
        mgjax.load(tmp_path / "whole", style_encoder=encoders["style_encoder"])


SOUND = noise(0.5)


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ({"style": 0 * SOUND}, ValueError, "the style is silent. There is no style in silence: give None"),
        ({"style": SOUND[:0]}, ValueError, "the style: there is no sound in it"),
        ({"style": SOUND * np.nan}, ValueError, "the style: holds NaN"),
        ({"style": np.stack([SOUND, -SOUND], axis=1)}, ValueError, "channels cancel each other out"),
        ({"style": [SOUND] * 3}, ValueError, "3 styles do not fit 2 rows: give one, or one for each"),
        ({"style": [SOUND, 0 * SOUND]}, ValueError, "the style of row 1 is silent"),
        ({"style": "song.wav"}, TypeError, "a style must be audio, not the name of a file"),
        ({"style": SOUND, "style_sample_rate": 0}, ValueError, "style_sample_rate must be a whole number of hertz"),
        ({"style": SOUND, "style_sample_rate": "fast"}, TypeError, "style_sample_rate must be a number"),
    ],
    ids=str,
)
def test_what_is_no_style_is_said(model, asked, kind, message):
    with pytest.raises(kind, match=message):
        model.stream_codes(["piano", "drums"], **asked)


def test_a_style_for_a_model_without():
    with pytest.raises(ValueError, match="not trained with styles: use a style model, such as musicgen-style"):
        mgjax.load("debug").generate("a waltz", style=SOUND)


def test_random_weights_of_the_published_kind():
    """Initialised so that signals keep their size, whatever the dtype."""
    style = StyleConfig(
        HubertConfig(conv_dims=(32,) * 7, dim=32, ffn_dim=64, num_layers=1, num_heads=2, normalize=False),
        dim=32, ffn_dim=64, num_layers=1, num_heads=2, codebook_size=16,
    )  # fmt: skip
    lm = dataclasses.replace(random_weights.DEBUG.lm, conditions=(mgjax.config.model.Fused("style", 32, "prefix"),))
    config = dataclasses.replace(random_weights.DEBUG, lm=lm, text=None, style=style)
    arrays = flat(random_weights.random_variables(config, dtype="bfloat16"))
    assert (arrays["style/batch_stats/var"] == 1).all()
    assert (arrays["style/batch_stats/mean"] == 0).all()
    assert (arrays["style/codebooks/cluster_size"] == 1).all()
    assert {array.dtype.name for name, array in arrays.items() if name.startswith("style/")} == {"float32"}
    assert 0.5 < np.std(arrays["style/features/positions/conv/kernel"]) * (128 * 2) ** 0.5 < 2
    assert 0.5 < np.std(arrays["style/features/conv1/kernel"]) * (3 * 32) ** 0.5 < 2


@pytest.mark.parametrize(("weights", "most"), [("bfloat16", 0.05), ("int8", 0.2)])
def test_weights_in_fewer_bits_predict_nearly_the_same(model, tmp_path, weights, most):
    model.save(tmp_path / "mine")
    loaded = mgjax.load(tmp_path / "mine", weights=weights)
    expected = logits(model, style=noise(1.0), style_sample_rate=tiny.RATE)
    error = np.abs(logits(loaded, style=noise(1.0), style_sample_rate=tiny.RATE) - expected).max() / expected.std()
    assert 1e-4 < error < most, error  # measured 0.016 and 0.039
    assert loaded.generate_codes("rock", seconds=0.2).shape[1] > 0
