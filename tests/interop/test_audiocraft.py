"""audiocraft's two files: read with and without what their xp.cfg may lack, and written so that torch reads them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from tiny_transformers import as_numpy, assert_same, encodec_config, flat, melody, musicgen, randomised, save

from mgjax.conditioner_config import MelodyConfig
from mgjax.config import CodecConfig, LMConfig, Sampling
from mgjax.interop import audiocraft, audiocraft_run, huggingface
from mgjax.interop.torch_file import CheckpointError, Tensor


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
    audiocraft.write_model(tmp_path / "model", theirs, dtype="float16", text_encoder="t5-tiny")
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
    assert audiocraft_run.codec_config(Path(), {}) == CodecConfig()
    rows = {
        "emb.0.weight": (2049, 1024),
        "emb.3.weight": (2049, 1024),
        "transformer.layers.0.linear1.weight": (4096, 1024),
    }
    rows |= {"transformer.layers.23.norm1.bias": (1024,), "transformer.layers.0.cross_attention.in_proj_weight": (3, 1)}
    rows |= {"condition_provider.conditioners.description.output_proj.weight": (1024, 768)}
    state = {name: Tensor(shape, np.dtype(np.float32), "", lambda: None) for name, shape in rows.items()}
    assert audiocraft_run.lm_config(Path(), state, {}) == LMConfig()


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
    assert_same(ours.variables["codec"], huggingface.read_codec(directory, place=as_numpy)[1])
    assert_same(ours.variables["lm"], theirs.variables["lm"])
    assert_same(audiocraft.read_codec(written, place=as_numpy, fetch=fetch)[1], ours.variables["codec"])


def test_codec_alone(theirs, tmp_path):
    audiocraft.write_codec(tmp_path / "codec", theirs.config.codec, theirs.variables["codec"])
    config, variables = audiocraft.read_codec(tmp_path / "codec", place=as_numpy)
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
        (lambda p: p["xp.cfg"]["codebooks_pattern"].update(modeling="parallel"), "pattern is 'parallel'"),
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


def test_names_of_text_encoders(theirs, tmp_path):
    with pytest.raises(CheckpointError, match=r"none of.*t5-base.*give text_encoder="):
        audiocraft.write_model(tmp_path / "model", theirs)
    assert audiocraft_run.t5_name(audiocraft_run.T5["t5-large"]) == "t5-large"


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
