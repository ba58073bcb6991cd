"""A model that hears texts through CLAP: from audiocraft's files and transformers' ClapModel to music."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_audiocraft as tiny
import tokenizers
import torch
import transformers
import yaml
from flax.traverse_util import flatten_dict

import mgjax
from mgjax.checkpoints import audiocraft
from mgjax.checkpoints.files.torch_file import CheckpointError
from mgjax.checkpoints.native import Checkpoint
from mgjax.checkpoints.tables.audiocraft_conditioners import CLAP
from mgjax.config.conditioning import ClapConditionConfig
from mgjax.config.model import Sampling

WIDTH, LEVELS, SIZE = 12, 3, 10
QUANTIZER = f"{tiny.CONDITIONER}.description.quantizer"
GREEDY = Sampling(temperature=0.0, guidance=3.0)
TEXTS = ["a slow waltz", "Drums!", "é and 日本"]


def state():
    words = tiny.quantizer(QUANTIZER, LEVELS, SIZE, WIDTH)
    words = {name: 0.3 * value if value.ndim == 2 else value for name, value in words.items()}
    return tiny.language_model({"description": WIDTH}, crossed=True) | words


def write(directory, **values):
    described = {"checkpoint": "//reference/clap/music.pt", "model_arch": "HTSAT-base", "enable_fusion": False}
    described |= {"quantize": True, "n_q": LEVELS, "bins": SIZE} | values
    conditioners = {"description": {"model": "clap", "clap": described}}
    return tiny.write(directory, state(), tiny.run(conditioners, {"cross": ["description"]}))


def build_clap(projection=WIDTH):
    """A ClapModel of transformers."""
    text = dict(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=90,
    )  # fmt: skip
    sound = dict(
        num_mel_bins=16, spec_size=32, patch_size=2, patch_stride=[2, 2], window_size=4, patch_embeds_hidden_size=8,
        hidden_size=16, depths=[1, 1], num_attention_heads=[2, 2],
    )  # fmt: skip
    torch.manual_seed(0)
    config = transformers.ClapConfig(text_config=text, audio_config=sound, projection_dim=projection)
    model = transformers.ClapModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return model


def save_clap(model, directory):
    """Its directory, with a vocabulary of bytes."""
    tiny.save(model, directory)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    (directory / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    front = dict(
        feature_size=16, sampling_rate=16_000, hop_length=160, fft_window_size=256, max_length_s=0.2, frequency_min=0,
        frequency_max=8000,
    )  # fmt: skip
    (directory / "preprocessor_config.json").write_text(json.dumps(front))
    return directory


@pytest.fixture(scope="module")
def reference():
    return build_clap()


@pytest.fixture(scope="module")
def clap(reference, tmp_path_factory):
    return str(save_clap(reference, tmp_path_factory.mktemp("clap")))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def model(files, clap):
    return mgjax.load(files, text_encoder=clap)


CODES = np.random.default_rng(0).integers(0, tiny.CODES, (1, 12, 4)).astype(np.int32)


def logits(model, texts, codes=CODES):
    return np.asarray(model.logits(codes, texts))


def test_what_the_files_say(model):
    config = model.config
    assert config.text is None
    assert [(one.name, one.dim, one.fuse) for one in config.lm.conditions] == [("clap", WIDTH, "cross")]
    assert (config.clap.num_codebooks, config.clap.codebook_size, config.clap.clap.dim) == (LEVELS, SIZE, WIDTH)


def test_texts_are_the_quantized_embeddings_of_transformers(model, reference, clap):
    tokenizer = transformers.RobertaTokenizer(str(Path(clap, "vocab.json")), str(Path(clap, "merges.txt")))
    told = tokenizer(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        rest = embedded = reference.get_text_features(**told).pooler_output
    arrays = state()
    for q in range(LEVELS):
        words = arrays[f"{QUANTIZER}.vq.layers.{q}._codebook.embed"]
        rest = rest - words[torch.cdist(rest, words).argmin(dim=1)]
    found = np.asarray(model._conditioner.encode(TEXTS).clap)[: len(TEXTS)]  # their number is rounded up
    error = np.abs(found - (embedded - rest).numpy()).max()
    assert error < 1e-5, error  # measured 6e-8 at a standard deviation of 0.2
    assert np.std(found, axis=0).max() > 0.05


def test_texts_act_and_no_text_is_an_absent_one(model):
    one, other, none = (logits(model, text) for text in (TEXTS[0], TEXTS[1], None))
    assert np.abs(one - other).max() > 0.1
    assert np.abs(one - none).max() > 0.1
    assert np.array_equal(none, logits(model, ""))
    both = logits(model, [TEXTS[0], None], np.repeat(CODES, 2, axis=0))
    for row, alone in zip(both, (one, none), strict=True):
        error = np.abs(row - alone[0]).max()
        assert error < 1e-4, error  # measured 1.4e-6 at a standard deviation of 2.2


def test_guidance(model):
    codes = model.generate_codes(TEXTS[0], seconds=0.06, sampling=GREEDY)
    one, none = logits(model, TEXTS[0], codes), logits(model, None, codes)
    assert np.array_equal(np.argmax(none + 3 * (one - none), axis=-1), codes)
    plain = dataclasses.replace(GREEDY, guidance=1.0)
    assert not np.array_equal(model.generate_codes(TEXTS[0], seconds=0.06, sampling=plain), codes)


def flat(tree):
    return {"/".join(path): np.asarray(array) for path, array in flatten_dict(tree).items()}


def test_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine" / "clap").iterdir()) == ["merges.txt", "vocab.json"]
    loaded = mgjax.load(tmp_path / "mine")
    assert loaded.config == dataclasses.replace(model.config, codec=model.codec.folded_config)
    assert np.array_equal(logits(loaded, TEXTS[0]), logits(model, TEXTS[0]))
    loaded.save(tmp_path / "mine")  # over itself
    half = mgjax.load(tmp_path / "mine", dtype="bfloat16")
    exact = {name for name, array in flat(half._params).items() if array.dtype == np.float32}
    statistics = {f"clap/audio/stats/htsat/mel_norm/{name}" for name in ("mean", "var")}
    assert exact == statistics | {f"clap/codebooks/{name}" for name in ("embed", "embed_avg", "cluster_size", "inited")}
    with pytest.raises(CheckpointError, match=r"transformers has no model of this kind.*mgjax form"):
        model.save(tmp_path / "theirs", format="huggingface")
    (tmp_path / "mine" / "clap" / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"without the tokenizer of its CLAP.*into the folder clap"):
        mgjax.load(tmp_path / "mine").generate(TEXTS[0], seconds=0.05)


def test_written_as_read(model, tmp_path):
    """With the published CLAP, which the files name and do not hold."""
    published = ClapConditionConfig(CLAP["HTSAT-base"], LEVELS, SIZE)
    lm = dataclasses.replace(model.config.lm, conditions=(mgjax.config.model.Fused("clap", 512),))
    config = dataclasses.replace(model.config, lm=lm, clap=published, codec=model.codec.folded_config)
    given = Checkpoint(config, model._checkpoint().variables)
    audiocraft.write_model(tmp_path / "model", given)
    package = torch.load(tmp_path / "model" / "state_dict.bin", weights_only=True)
    expected = state()
    assert package["best_state"].keys() == expected.keys()
    for name, value in package["best_state"].items():
        assert torch.equal(value, expected[name]), name
    run = yaml.safe_load(package["xp.cfg"])
    assert run["conditioners"]["description"]["clap"].items() >= {"model_arch": "HTSAT-base", "n_q": LEVELS}.items()
    assert run["fuser"]["cross"] == ["description"]
    package["best_state"][f"{tiny.CONDITIONER}.description.output_proj.weight"] = torch.zeros(tiny.DIM, 512)
    torch.save(package, tmp_path / "model" / "state_dict.bin")
    assert audiocraft.read_config(tmp_path / "model").clap == published
    with pytest.raises(CheckpointError, match="is none of HTSAT-tiny, HTSAT-base"):
        model.save(tmp_path / "other", format="audiocraft")


def test_files_that_do_not_fit(files, clap, tmp_path):
    with pytest.raises(CheckpointError, match=r"music.pt, a file in LAION's own.*give text_encoder=.*ClapModel"):
        mgjax.load(files)
    narrow = save_clap(build_clap(projection=8), tmp_path / "narrow")
    with pytest.raises(CheckpointError, match=r"joint embeddings of width 12.*gives width 8; give text_encoder="):
        mgjax.load(files, text_encoder=str(narrow))
    with pytest.raises(CheckpointError, match="describes the model type 't5'; expected 'clap'"):
        mgjax.load(files, text_encoder=str(tiny.t5(tmp_path / "t5", ["a"])))
    with pytest.raises(CheckpointError, match=r"of another shape.*_codebook.embed .*expected \(11, 12\)"):
        mgjax.load(write(tmp_path / "bins", bins=11), text_encoder=clap)
    with pytest.raises(CheckpointError, match=r"unexpected \(12\): .*quantizer"):
        mgjax.load(write(tmp_path / "plain", quantize=False), text_encoder=clap)
    with pytest.raises(CheckpointError, match=r"clap\.enable_fusion is True"):
        mgjax.load(write(tmp_path / "fusion", enable_fusion=True), text_encoder=clap)


def test_a_style_for_a_model_without(model):
    with pytest.raises(ValueError, match="not trained with styles"):
        model.generate(TEXTS[0], style=np.ones(800))


@pytest.mark.parametrize(("weights", "most"), [("bfloat16", 0.05), ("int8", 0.2)])
def test_weights_in_fewer_bits_predict_nearly_the_same(model, tmp_path, weights, most):
    model.save(tmp_path / "mine")
    loaded = mgjax.load(tmp_path / "mine", weights=weights)
    expected = logits(model, TEXTS[0])
    error = np.abs(logits(loaded, TEXTS[0]) - expected).max() / expected.std()
    assert 1e-4 < error < most, error  # measured 0.020 and 0.033
    assert loaded.generate_codes("rock", seconds=0.2).shape[1] > 0
