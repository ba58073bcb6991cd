"""audiocraft's two files: read with and without what their xp.cfg may lack, and written so that torch reads them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from tiny_transformers import as_numpy, assert_same, encodec_config, flat, melody, musicgen, randomised, save
from written_codecs import write_compression_model

from mgjax import load
from mgjax.api import MusicGen
from mgjax.checkpoints import audiocraft, audiocraft_config, huggingface, random_weights
from mgjax.checkpoints.files import xp_cfg
from mgjax.checkpoints.files.torch_file import Tensor
from mgjax.checkpoints.native import Checkpoint
from mgjax.checkpoints.tables import matching, shapes
from mgjax.config import published
from mgjax.config.conditioning import MelodyConfig
from mgjax.config.model import CodecConfig, LMConfig, ModelConfig, Sampling
from mgjax.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def theirs(saved):
    return huggingface.read_model(saved, place=as_numpy)


@pytest.fixture
def written(theirs, tmp_path):
    audiocraft.write_model(tmp_path / "model", theirs, text_encoder="t5-tiny")
    return tmp_path / "model"


def read(directory, text_encoder, **options):
    return audiocraft.read_model(directory, text_encoder=text_encoder, place=as_numpy, **options)


def edit(path, change):
    """Rewrites a file with its content changed in place; its xp.cfg is given as a dictionary."""
    package = torch.load(path, weights_only=True)
    package["xp.cfg"] = yaml.safe_load(package["xp.cfg"])
    change(package)
    if isinstance(package["xp.cfg"], dict):
        package["xp.cfg"] = yaml.safe_dump(package["xp.cfg"])
    torch.save(package, path)


def same_but_for_bandwidths(ours, theirs):
    """The form has no bandwidths; they follow from the codebooks."""
    codec = dataclasses.replace(ours.codec, bandwidths=theirs.codec.bandwidths)
    return dataclasses.replace(ours, codec=codec) == theirs


def test_round_trip(written, theirs, saved):
    ours = read(written, saved)
    assert same_but_for_bandwidths(ours.config, theirs.config)
    assert audiocraft.read_config(written, text_encoder=saved) == ours.config
    assert ours.tokenizer == saved
    assert_same(ours.variables, theirs.variables)


def test_torch_reads_what_is_written(written, saved, model):
    package = torch.load(written / "state_dict.bin", weights_only=True)
    assert package["exported"] is True
    assert isinstance(package["version"], str)
    state, expected = package["best_state"], model.state_dict()
    body = "decoder.model.decoder"
    assert torch.equal(state["emb.2.weight"], expected[f"{body}.embed_tokens.2.weight"])
    assert torch.equal(state["linears.3.weight"], expected["decoder.lm_heads.3.weight"])
    for ours, name in (("self_attn", "self_attn"), ("cross_attention", "encoder_attn")):
        rows = [expected[f"{body}.layers.1.{name}.{part}_proj.weight"] for part in "qkv"]
        assert torch.equal(state[f"transformer.layers.1.{ours}.in_proj_weight"], torch.cat(rows))
    for ours, name in (("norm1", "self_attn_layer_norm"), ("norm_cross", "encoder_attn_layer_norm")):
        assert torch.equal(state[f"transformer.layers.0.{ours}.bias"], expected[f"{body}.layers.0.{name}.bias"])
    assert torch.equal(state["transformer.layers.0.linear2.weight"], expected[f"{body}.layers.0.fc2.weight"])
    projection = "condition_provider.conditioners.description.output_proj"
    assert torch.equal(state[f"{projection}.bias"], expected["enc_to_dec_proj.bias"])
    assert len(state) == 4 + 4 + 2 + 2 + 2 * (2 + 2 + 2 + 6)

    codec = torch.load(written / "compression_state_dict.bin", weights_only=True)["best_state"]
    original = "parametrizations.weight.original1"
    for ours, name in (
        ("encoder.model.0.conv.conv.weight_v", f"encoder.layers.0.conv.{original}"),
        ("encoder.model.1.block.3.conv.conv.weight_v", f"encoder.layers.1.block.3.conv.{original}"),
        ("encoder.model.7.lstm.weight_ih_l1", "encoder.layers.7.lstm.weight_ih_l1"),
        ("decoder.model.3.convtr.convtr.weight_v", f"decoder.layers.3.conv.{original}"),
        ("quantizer.vq.layers.2._codebook.embed_avg", "quantizer.layers.2.codebook.embed_avg"),
    ):
        assert torch.equal(codec[ours], expected[f"audio_encoder.{name}"]), ours


def test_written_configs(written):
    run = yaml.safe_load(torch.load(written / "state_dict.bin", weights_only=True)["xp.cfg"])
    assert run["transformer_lm"]["hidden_scale"] == 2
    assert run["fuser"]["cross"] == ["description"]
    assert run["codebooks_pattern"]["delay"]["delays"] == [0, 1, 2, 3]
    assert run["conditioners"]["description"]["t5"]["name"] == "t5-tiny"
    assert not run["interleave_stereo_codebooks"]["use"]
    codec = yaml.safe_load(torch.load(written / "compression_state_dict.bin", weights_only=True)["xp.cfg"])
    assert (codec["sample_rate"], codec["seanet"]["true_skip"], codec["seanet"]["pad_mode"]) == (320, True, "reflect")
    assert codec["rvq"]["n_q"] == 4


def test_half_precision(theirs, saved, tmp_path):
    halved = huggingface.read_model(saved, dtype="float16", place=as_numpy)
    audiocraft.write_model(tmp_path / "model", halved, text_encoder="t5-tiny")
    state = torch.load(tmp_path / "model" / "state_dict.bin", weights_only=True)["best_state"]
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    halves, original = read(tmp_path / "model", saved).variables, theirs.variables
    for name, array in flat(halves["lm"]).items():
        expected = flat(original["lm"])[name].astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(array, expected, err_msg=name)
    assert_same(halves["codec"], original["codec"])


@pytest.mark.parametrize("kind", ["stereo", "melody"])
def test_other_kinds(kind, tmp_path):
    model = musicgen(num_codebooks=8, audio_channels=2) if kind == "stereo" else melody()
    directory = save(model, tmp_path / "huggingface")
    theirs = huggingface.read_model(directory, place=as_numpy)
    audiocraft.write_model(tmp_path / "model", theirs, text_encoder="t5-tiny")
    if kind == "melody":
        name = "condition_provider.conditioners.self_wav.chroma.spec.window"
        edit(
            tmp_path / "model" / "state_dict.bin", lambda package: package["best_state"].update({name: torch.zeros(9)})
        )
    ours = read(tmp_path / "model", directory)
    # transformers' config says how many frames a melody has, audiocraft's how long a piece is.
    assert same_but_for_bandwidths(dataclasses.replace(ours.config, melody=theirs.config.melody), theirs.config)
    assert_same(ours.variables, theirs.variables)
    if kind == "stereo":
        assert ours.config.channels == 2
    else:
        assert ours.config.melody == MelodyConfig(12, 320, num_frames=int(30 * 320 / 4096) + 1)


def test_references_in_the_config(written, theirs, saved):
    def change(package):
        run = package["xp.cfg"]
        run["sample_rate"], run["channels"] = "${nested.rate}", 1
        run["nested"] = {"rate": 320, "user": "${oc.env:USER}", "loop": "${nested.loop}"}
        run["encodec"] |= {"sample_rate": "${sample_rate}", "causal": False}
        run["seanet"] |= {"channels": "${channels}", "causal": "${encodec.causal}"}

    edit(written / "compression_state_dict.bin", change)
    assert same_but_for_bandwidths(read(written, saved).config, theirs.config)


def test_what_the_config_does_not_say_follows_from_the_arrays(written, theirs, saved):
    def change(package):
        run = package["xp.cfg"]
        run["transformer_lm"] = {"num_heads": 2}
        del run["codebooks_pattern"], run["fuser"], run["dataset"], run["classifier_free_guidance"]

    edit(written / "state_dict.bin", change)
    assert same_but_for_bandwidths(read(written, saved).config, theirs.config)


def test_defaults_are_the_published_model():
    assert audiocraft_config.codec_config(Path(), {}) == CodecConfig()
    rows = {
        "transformer.layers.0.linear1.weight": (4096, 1024),
        "transformer.layers.0.cross_attention.in_proj_weight": (3, 1),
    }
    rows |= {f"emb.{k}.weight": (2049, 1024) for k in range(4)}
    rows |= {f"transformer.layers.{i}.norm1.bias": (1024,) for i in range(24)}
    rows |= {"condition_provider.conditioners.description.output_proj.weight": (1024, 768)}
    state = {name: Tensor(shape, np.dtype(np.float32), "", lambda: None) for name, shape in rows.items()}
    assert audiocraft_config.lm_config(Path(), state, {}) == LMConfig()


def test_values_of_the_config_count(written, saved):
    def change(package):
        package["xp.cfg"]["classifier_free_guidance"]["inference_coef"] = 4.0
        package["xp.cfg"]["dataset"]["segment_duration"] = 10
        package["xp.cfg"]["codebooks_pattern"]["delay"]["delays"] = [0, 2, 3, 4]

    edit(written / "state_dict.bin", change)
    edit(
        written / "compression_state_dict.bin", lambda package: package["xp.cfg"]["seanet"].update(pad_mode="constant")
    )
    config = read(written, saved).config
    assert config.sampling == Sampling(guidance=4.0)
    assert (config.window_seconds, config.lm.delays, config.codec.pad_mode) == (10.0, (0, 2, 3, 4), "constant")


def test_a_codec_by_pointer(written, theirs, saved, tmp_path):
    torch.manual_seed(3)
    codec = randomised(transformers.EncodecModel(encodec_config()))
    directory = save(codec, tmp_path / "codec")
    torch.save({"pretrained": "facebook/encodec_tiny", "exported": True}, written / "compression_state_dict.bin")
    fetched = []

    def fetch(source):
        fetched.append(source)
        return directory if source == "facebook/encodec_tiny" else saved

    ours = audiocraft.read_model(written, place=as_numpy, fetch=fetch)
    assert fetched == ["facebook/encodec_tiny", "t5-tiny"]
    assert_same(ours.variables["codec"], matching.read(huggingface.match_codec(directory), place=as_numpy)[1])
    assert_same(ours.variables["lm"], theirs.variables["lm"])
    assert_same(matching.read(audiocraft.match_codec(written, fetch=fetch), place=as_numpy)[1], ours.variables["codec"])


def test_codec_alone(theirs, tmp_path):
    write_compression_model(tmp_path / "codec", theirs.config.codec, theirs.variables["codec"])
    config, variables = matching.read(audiocraft.match_codec(tmp_path / "codec"), place=as_numpy)
    assert dataclasses.replace(config, bandwidths=(0.8,)) == theirs.config.codec
    assert_same(variables, theirs.variables["codec"])
    with pytest.raises(CheckpointError, match=r"state_dict.bin: there is no such file"):
        read(tmp_path / "codec", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["best_state"].pop("out_norm.bias"), r"missing \(1\): out_norm.bias \(24,\)"),
        (lambda p: p["best_state"].update(style=torch.zeros(2)), r"unexpected \(1\): style \(2,\) \(state_dict.bin\)"),
        (lambda p: p["best_state"].update({"emb.1.weight": torch.zeros(3, 2)}), r"emb.1.weight .* expected \(33, 24\)"),
        (lambda p: p["best_state"].clear(), "holds no language model"),
        (lambda p: p.update(best_state={"model": p["best_state"]}), "training checkpoint"),
        (lambda p: p["xp.cfg"]["codebooks_pattern"].update(modeling="random"), "pattern must be one of"),
        (lambda p: p["xp.cfg"]["transformer_lm"].update(activation="relu"), "transformer_lm.activation is 'relu'"),
        (lambda p: p["xp.cfg"]["transformer_lm"].update(num_heads=5), "not a multiple of num_heads"),
        (lambda p: p["xp.cfg"]["transformer_lm"].update(dim="wide"), "does not describe a language model"),
        (lambda p: p["xp.cfg"]["conditioners"]["description"].update(model="lut"), "only 't5' and 'clap'"),
        (lambda p: p.update({"xp.cfg": "a: [b"}), "xp.cfg is not YAML"),
        (lambda p: p.update({"xp.cfg": "!!python/object/apply:os.system ['false']"}), "xp.cfg is not YAML"),
        (lambda p: p.update({"xp.cfg": "[1]"}), "should be a YAML mapping"),
    ],
)
def test_files_that_do_not_fit_are_errors(written, saved, change, message):
    edit(written / "state_dict.bin", change)
    with pytest.raises(CheckpointError, match=rf"{written / 'state_dict.bin'}: [\s\S]*{message}"):
        read(written, saved)


def test_another_text_encoder(written, saved, tmp_path):
    other = save(transformers.T5EncoderModel(transformers.T5Config(d_model=12, num_layers=1, d_ff=8)), tmp_path / "t5")
    with pytest.raises(CheckpointError, match=r"width 16 \(it was made with t5-tiny\).*gives width 12"):
        read(written, other)


def test_encoders_that_a_model_has_no_use_for_are_refused(written, saved, tmp_path):
    with pytest.raises(ConfigError, match="the model has no style condition: leave style_encoder out"):
        audiocraft.read_model(written, text_encoder=saved, style_encoder=saved)
    audiocraft.write_model(tmp_path / "model", tiny())
    with pytest.raises(ConfigError, match="the model reads no text: leave text_encoder out"):
        audiocraft.read_model(tmp_path / "model", text_encoder=saved)


def test_names_of_text_encoders(theirs, tmp_path):
    with pytest.raises(CheckpointError, match=r"none of.*t5-base.*give text_encoder="):
        audiocraft.write_model(tmp_path / "model", theirs)
    assert audiocraft_config.t5_name(published.T5["t5-large"]) == "t5-large"


def test_missing_codec(written, saved):
    (written / "compression_state_dict.bin").unlink()
    with pytest.raises(CheckpointError, match=r"compression_state_dict.bin: there is no such file"):
        read(written, saved)


def test_the_published_form(written, saved, theirs):
    """Written by torch.save with an OrderedDict of its own, as the published files are."""
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        package = torch.load(written / name, weights_only=True)
        state = torch.nn.Linear(1, 1).state_dict()
        state.clear()
        state.update(package["best_state"])
        torch.save(package | {"best_state": state}, written / name)
    assert_same(read(written, saved).variables, theirs.variables)


# Small enough to be written, read and run in a second: 5 frames a second, of a codec of 40 Hz.
TINY_CODEC = CodecConfig(
    sample_rate=40, num_filters=2, ratios=(4, 2), num_lstm_layers=1, latent_dim=4, num_codebooks=4, codebook_size=8
)


def tiny(*, num_codebooks=4, channels=1, window=30.0, **pattern):
    """A model without conditions and with random weights."""
    sizes = {"dim": 8, "num_layers": 1, "num_heads": 2, "ffn_dim": 16, "codebook_size": 8, "conditions": ()}
    lm = LMConfig(num_codebooks=num_codebooks, **sizes, **pattern)
    config = ModelConfig(lm, TINY_CODEC, None, channels=channels, window_seconds=window)
    return Checkpoint(config, random_weights.random_arrays(shapes.model_shapes(config)))


PATTERNS = {
    "flatten_first": {"delays": (0, 1, 3, 3), "flatten_first": 2},
    "empty_initial": {"delays": (0, 0, 2, 3), "empty_initial": 2},
    "parallel": {"pattern": "parallel", "empty_initial": 1},
    "unroll": {"pattern": "flattened", "flattening": (0, 1, 1, 3), "frame_delays": (0, 2, 2, 3)},
    "coarse_first": {"pattern": "coarse_first", "frame_delays": (0, 1, 2)},
    "musiclm": {"pattern": "musiclm", "group_by": 4},
}
LOGITS = {
    "flatten_first": [
        [-0.5925, -0.832, 1.4693, -1.4756],
        [-0.6136, -1.0359, 0.3791, 0.1491],
        [0.0785, 0.5537, 0.5447, -0.9479],
    ],
    "empty_initial": [
        [-1.0047, -1.0438, -0.222, -0.1856],
        [-0.4205, -1.3749, -0.4073, 0.784],
        [-1.7258, 0.3398, 1.0688, 1.1559],
    ],
    "parallel": [
        [-0.7656, -0.9567, 1.2122, -1.4572],
        [-1.2149, -1.6031, 0.4949, -1.6802],
        [0.1094, -1.2363, -0.6312, -0.0697],
    ],
    "unroll": [
        [-0.7656, -0.4667, 1.7738, -1.1076],
        [-0.2779, -0.9182, 1.6146, -0.9326],
        [-0.3363, -1.2897, 0.9526, -0.9556],
    ],
    "coarse_first": [
        [-0.5925, 0.4516, 1.4479, -1.83],
        [-0.2803, -1.7666, 0.97, -0.9403],
        [0.2916, -1.2096, 1.3114, 0.6083],
    ],
    "musiclm": [
        [-0.5925, -0.832, 1.4693, -1.4756],
        [-0.6136, -1.0359, 2.1954, -0.5829],
        [-0.0038, -1.0537, 1.9502, -0.7387],
    ],
}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name, tmp_path):
    """Written, read again, and the logits of code 0 in frames 0, 2 and 5 as audiocraft 1.4.0a2 computes them."""
    theirs = tiny(**PATTERNS[name])
    audiocraft.write_model(tmp_path / "model", theirs)
    ours = audiocraft.read_model(tmp_path / "model", place=as_numpy)
    assert ours.config.lm == theirs.config.lm
    codes = np.random.default_rng(0).integers(0, 8, (1, 6, 4)).astype(np.int32)
    logits = np.asarray(MusicGen(ours).logits(codes, [None]))[0, (0, 2, 5), :, 0]
    assert np.abs(logits - LOGITS[name]).max() < 2e-4  # LOGITS are rounded to 5e-5
    assert np.std(logits) > 0.3


def test_the_numbers_of_a_pattern_that_audiocraft_would_take(tmp_path):
    """It reads them where codebooks_pattern names the pattern, and lets missing ones be."""

    def config(run):
        rows = {"emb.0.weight": (9, 8), "emb.1.weight": (9, 8), "transformer.layers.0.linear1.weight": (16, 8)}
        state = {name: Tensor(shape, np.dtype(np.float32), "", lambda: None) for name, shape in rows.items()}
        return audiocraft_config.lm_config(Path("f"), state, {"transformer_lm": {"num_heads": 2}} | run)

    assert config({"codebooks_pattern": {"modeling": "delay"}}).delays == (0, 1)
    assert config({"codebooks_pattern": {"modeling": "delay", "delay": {"delays": None}}}).delays == (0, 1)
    assert config({"codebooks_pattern": {"modeling": "delay", "delay": {"delays": [3, 1]}}}).delays == (3, 1)
    ignored = {"transformer_lm": {"q_modeling": "delay", "num_heads": 2}}
    ignored |= {"codebooks_pattern": {"modeling": None, "delay": {"delays": [5, 5], "flatten_first": 3}}}
    assert config(ignored) == config({})
    assert config({"codebooks_pattern": {"modeling": "unroll"}}).pattern == "flattened"
    # Its own configs call the numbers of musiclm music_lm, and it does not read them.
    assert config({"codebooks_pattern": {"modeling": "musiclm", "music_lm": {"group_by": 1}}}).group_by == 2
    for pattern in (
        {"modeling": "random"},
        {"modeling": ["delay"]},
        {"modeling": "delay", "delay": {"delays": [0, 1, 2]}},
        {"modeling": "delay", "delay": {"delays": [0, 10**9]}},
        {"modeling": "delay", "delay": {"empty_initial": -1}},
        {"modeling": "delay", "delay": {"stride": 1}},
        {"modeling": "delay", "delay": 3},
        {"modeling": "unroll", "unroll": {"flattening": [1, 0]}},
        {"modeling": "musiclm", "musiclm": {"group_by": 0}},
    ):
        with pytest.raises(CheckpointError, match=r"f: its xp.cfg does not describe a language model"):
            config({"codebooks_pattern": pattern})


def test_delays_that_audiocraft_does_not_take_are_not_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"delays do not ascend. Save it in mgjax form"):
        audiocraft.write_model(tmp_path / "model", tiny(delays=(1, 0, 2, 3)))


@pytest.mark.parametrize(("channels", "each"), [(1, 3), (2, 2)])
def test_fewer_codebooks_than_the_codec_has(channels, each, tmp_path):
    count = channels * each
    theirs = tiny(num_codebooks=count, channels=channels, delays=tuple(k // channels for k in range(count)))
    audiocraft.write_model(tmp_path / "theirs", theirs)
    run = yaml.safe_load(torch.load(tmp_path / "theirs" / "state_dict.bin", weights_only=True)["xp.cfg"])
    assert run["compression_model_n_q"] == each
    model = MusicGen(audiocraft.read_model(tmp_path / "theirs"))
    assert (model.config.lm, model.channels) == (theirs.config.lm, channels)
    greedy = {"seconds": 4, "sampling": Sampling(temperature=0, guidance=1)}
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (80, channels)).astype(np.float32)
    codes = model.codec.encode(audio)
    assert codes.shape == (1, 10, 4 * channels)
    again = model.generate_codes([None], prompt=audio, **greedy)
    assert np.array_equal(again[:, :10], codes[..., :count])
    assert np.array_equal(model.logits(codes, [None]), model.logits(codes[..., :count], [None]))
    assert model.generate([None], **greedy).shape == (1, 160, channels)
    model.save(tmp_path / "ours")
    model.save(tmp_path / "back", "audiocraft")
    for saved in (tmp_path / "ours", tmp_path / "back"):
        assert np.array_equal(load(saved).generate_codes([None], prompt=audio, **greedy), again)


def test_codebooks_that_the_run_does_not_use_are_an_error(tmp_path):
    audiocraft.write_model(tmp_path / "model", tiny(num_codebooks=3, delays=(0, 1, 2)))
    edit(tmp_path / "model" / "state_dict.bin", lambda package: package["xp.cfg"].update(compression_model_n_q=2))
    with pytest.raises(CheckpointError, match="compression_model_n_q is not 3, as its arrays"):
        audiocraft.read_model(tmp_path / "model", place=as_numpy)


def test_transformers_takes_fewer_codebooks_by_the_first_bandwidth(theirs, tmp_path):
    lm = dataclasses.replace(theirs.config.lm, num_codebooks=2, delays=(0, 1))
    codec = dataclasses.replace(theirs.config.codec, bandwidths=(0.4, 0.8))
    for bandwidths in ((0.4, 0.8), (0.8,)):
        codec = dataclasses.replace(codec, bandwidths=bandwidths)
        config = dataclasses.replace(theirs.config, lm=lm, codec=codec)
        model = Checkpoint(config, random_weights.random_arrays(shapes.model_shapes(config), place=as_numpy))
        if len(bandwidths) == 2:
            huggingface.write_model(tmp_path / "model", model)
            assert huggingface.read_config(tmp_path / "model").lm.num_codebooks == 2
        else:
            with pytest.raises(CheckpointError, match="codebooks of the codec's first bandwidth, or all"):
                huggingface.write_model(tmp_path / "model", model)


def test_the_window_of_the_melody(tmp_path):
    """audiocraft opens its models with strict=True, and keeps this window of torchaudio's Spectrogram."""
    directory = save(melody(), tmp_path / "huggingface")
    theirs = huggingface.read_model(directory, dtype="float16", place=as_numpy)
    audiocraft.write_model(tmp_path / "model", theirs, text_encoder="t5-tiny")
    state = torch.load(tmp_path / "model" / "state_dict.bin", weights_only=True)["best_state"]
    window = state["condition_provider.conditioners.self_wav.chroma.spec.window"]
    assert window.dtype == torch.float32
    assert torch.abs(window - torch.hann_window(16_384)).max() < 1e-6  # measured 6e-8
    assert_same(read(tmp_path / "model", directory, dtype="float16").variables["codec"], theirs.variables["codec"])
    suppressed = dataclasses.replace(theirs.config.melody, bottleneck="suppress")
    other = dataclasses.replace(theirs, config=dataclasses.replace(theirs.config, melody=suppressed))
    with pytest.raises(CheckpointError, match="audiocraft has no such melody"):
        audiocraft.write_model(tmp_path / "other", other, text_encoder="t5-tiny")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transformer_lm.max_period", 5000),
        ("transformer_lm.positional_scale", 2),
        ("transformer_lm.rope_theta", 1.0),
        ("transformer_lm.layer_scale", 1e-4),
        ("transformer_lm", "large"),
        ("fuser.cross_attention_pos_emb", True),
        ("fuser.ignore", ["description"]),
        ("fuser.prepend", 3),
        ("conditioners.genre", {"model": "lut"}),
        ("conditioners.description", "t5"),
        ("conditioners.description.t5.normalize_text", True),
        ("conditioners.description.t5.finetune", True),
        ("conditioners.self_wav.chroma_stem.argmax", False),
        ("conditioners.self_wav.chroma_stem.norm", 2),
        ("conditioners.self_wav.chroma_stem.winhop", 512),
        ("conditioners.self_wav.chroma_stem.eval_wavs", "wavs.json"),
        ("conditioners.self_wav.chroma_stem.sample_rate", 16_000),
        ("conditioners.self_wav.style.use_middle_of_segment", True),
        ("conditioners.description.clap.normalize", False),
        ("attribute_dropout.args.active_on_eval", True),
        ("interleave_stereo_codebooks.per_timestep", True),
    ],
)
def test_fields_that_would_change_numbers_are_refused_by_name(name, value):
    run = {"sample_rate": 32_000, "fuser": {"cross": ["description"]}}
    config_of_small(run)
    *parents, last = name.split(".")
    inner = run
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[last] = value
    message = rf"f: ({name}|{'.'.join(parents)}) (is|has) .*xp.cfg"
    if name == "fuser.prepend":
        message = "does not describe a language model"
    with pytest.raises(CheckpointError, match=message):
        config_of_small(run)


def config_of_small(run):
    """The config of a language model with a text condition and this xp.cfg."""
    state = {"condition_provider.conditioners.description.output_proj.weight": (8, 4)}
    state |= {"emb.0.weight": (9, 8), "transformer.layers.0.linear1.weight": (16, 8)}
    state = {name: Tensor(shape, np.dtype(np.float32), "", lambda: None) for name, shape in state.items()}
    return audiocraft_config.lm_config(Path("f"), state, run)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seanet.norm_params", {"eps": 1}),
        ("seanet.decoder.dilation_base", 3),
        ("seanet.encoder", {"pad_mode": "reflect"}),
        ("seanet.channels", 2),
        ("encodec.sample_rate", 16_000),
        ("encodec.quantizer", "no_quant"),
        ("rvq.cosine", True),
    ],
)
def test_fields_of_the_codec_are_refused_by_name(name, value):
    run = audiocraft_config.codec_run(CodecConfig())
    audiocraft_config.codec_config(Path("f"), run)
    *parents, last = name.split(".")
    inner = run
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    with pytest.raises(CheckpointError, match=rf"f: ({name}|{'.'.join(parents)}) (is|has) .*xp.cfg"):
        audiocraft_config.codec_config(Path("f"), run)


def test_what_audiocraft_knows_and_numbers_do_not_depend_on_is_let_be():
    """The fields of its own configs for MusicGen, of training and of speed."""
    lm = {"dropout": 0.1, "emb_lr": None, "weight_init": "gaussian", "depthwise_init": "current", "xpos": False}
    lm |= {"zero_bias_init": True, "checkpointing": "torch", "attention_dropout": None, "two_step_cfg": True}
    chroma = {"sample_rate": 32_000, "n_chroma": 12, "radix2_exp": 14, "argmax": True, "match_len_on_eval": False}
    chroma |= {"eval_wavs": None, "n_eval_wavs": 100, "cache_path": "/tmp"}
    t5 = {"name": "t5-base", "finetune": False, "word_dropout": 0.3, "normalize_text": False}
    conditioners = {
        "self_wav": {"model": "chroma_stem", "chroma_stem": chroma},
        "description": {"model": "t5", "t5": t5},
    }
    conditioners["args"] = {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5}
    run = {"sample_rate": 32_000, "transformer_lm": lm, "conditioners": conditioners, "optim": {"lr": 1}}
    assert config_of_small(run) == config_of_small({"conditioners": None})


BOMBS = {
    "aliases": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 10}]\n" for i in range(1, 30)),
    "merges": "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
    "a circle": "a: &a [*a]",
    "depth": "a: " + "[" * 1000,
    "depth of blocks": "".join(" " * i + "a:\n" for i in range(300)),
    "values": "a: [" + "b," * 10_000 + "]",
    "digits": "a: " + "9" * 5000,
    "sexagesimal digits": "a: " + ":".join(["1"] * 5000),
    "length": "a: b\n" + "#" * 300_000,
    "a scalar that is none": "a: !!timestamp b",
    "another": "a: !!bool b",
    "a date": "a: 2020-99-99",
}


@pytest.mark.parametrize("text", [*BOMBS.values(), 3, b"a: 1"], ids=[*BOMBS, "a number", "bytes"])
def test_yaml_that_could_fill_the_memory_is_refused(text):
    with pytest.raises(CheckpointError, match=r"f: its xp.cfg is not"):
        xp_cfg.parse(Path("f"), text)


def test_references_do_not_multiply():
    text = "x: [" + ", ".join(["'${x}'"] * 100) + "]\na: '${b}'\nb: '${a}'\nc: '${d.e}'\nd: {e: '${f}'}\nf: 3"
    run = xp_cfg.parse(Path("f"), text)
    assert run["x"][5] == ["${x}"] * 100
    assert run["a"] in ("${a}", "${b}")
    assert (run["c"], run["d"]["e"]) == (3, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["xp.cfg"]["transformer_lm"].update(hidden_scale=float("inf")),
        lambda p: p["xp.cfg"]["transformer_lm"].update(hidden_scale=[4]),
        lambda p: p["xp.cfg"]["dataset"].update(segment_duration=float("inf")),
        lambda p: p["xp.cfg"]["dataset"].update(segment_duration="long"),
        lambda p: p["xp.cfg"]["classifier_free_guidance"].update(inference_coef=float("inf")),
        lambda p: p["xp.cfg"].update(codebooks_pattern=[0]),
        lambda p: p["best_state"].update({7: torch.zeros(1)}),
        lambda p: p["best_state"].update({"emb.999999999.weight": torch.zeros(9, 8)}),
        lambda p: p["best_state"].update({f"emb.{'9' * 5000}.weight": torch.zeros(9, 8)}),
        lambda p: p["best_state"].update({"transformer.layers.999999999.norm1.bias": torch.zeros(8)}),
        lambda p: p["best_state"].update({"emb.0.weight": torch.zeros(0, 8)}),
        lambda p: p["best_state"].update({"emb.0.weight": torch.zeros(9, 0)}),
        lambda p: p["best_state"].update({"transformer.layers.0.linear1.weight": torch.zeros(0, 8)}),
    ],
)
def test_wrong_values_and_names_are_one_error(change, tmp_path):
    audiocraft.write_model(tmp_path / "model", tiny())
    edit(tmp_path / "model" / "state_dict.bin", change)
    with pytest.raises(CheckpointError, match=r"state_dict.bin: "):
        audiocraft.read_model(tmp_path / "model", place=as_numpy)


def test_three_windows_are_those_of_audiocraft():
    """7 s of audio continued to 50 s: at every code that was drawn, it is the likeliest by a clear margin in the window
    in which audiocraft draws it, whose arithmetic is repeated here.

    Run beside audiocraft, all greedy codes of 6 such models (the least margin was 6e-5) and of pieces of 30.5 to 70 s
    with prompts of 5 to 12 s were equal: where codes part, two logits tie.
    """
    model = tiny(delays=(0, 1, 2, 3))
    model.variables["lm"]["head"]["kernel"] *= 8
    model = MusicGen(model)
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (7 * 40, 1)).astype(np.float32)
    codes = model.generate_codes([None], seconds=50, prompt=audio, sampling=Sampling(temperature=0, guidance=1))
    assert codes.shape[1] == 250
    offset, known, seen = 0, 35, []
    while offset + known < 250:
        size = int(min(50 - offset / 5, 30) * 5)
        window = codes[:, offset : offset + size]
        logits = np.asarray(model.logits(window, [None]))[0, known:]
        others = np.sort(logits, axis=-1)
        assert np.array_equal(logits.argmax(-1), window[0, known:])
        assert (others[..., -1] - others[..., -2]).min() > 1e-3  # rounding moves logits by 1e-5
        seen.append((offset, size, known))
        offset, known = offset + 18 * 5, size - 18 * 5
    assert seen == [(0, 150, 35), (90, 150, 60), (180, 70, 60)]
    assert len(np.unique(codes[0, 35:], axis=0)) > 50
