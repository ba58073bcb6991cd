"""Directories of transformers: every form of the files, every kind of model, and back again."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import unflatten_dict
from safetensors.torch import load_file, save_file
from tiny_transformers import (
    as_numpy,
    assert_same,
    edit_json,
    encodec_config,
    flat,
    loaded,
    melody,
    musicgen,
    randomised,
    rename_keys,
    save,
    t5_config,
)
from written_codecs import write_encodec

from mgjax.checkpoints import huggingface, native
from mgjax.checkpoints.files import safetensors
from mgjax.checkpoints.files.torch_file import CheckpointError
from mgjax.checkpoints.tables import matching, shapes
from mgjax.checkpoints.tables.musicgen import t5 as t5_table
from mgjax.config.conditioning import T5Config
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig, Sampling

LAYER = "decoder.model.decoder.layers.1"


@pytest.fixture(scope="module")
def read(saved):
    return huggingface.read_model(saved, place=as_numpy)


def test_config(read, saved):
    codec = CodecConfig(
        sample_rate=320, num_filters=4, ratios=(4, 2), latent_dim=8, codebook_size=32, bandwidths=(0.8,)
    )
    lm = LMConfig(dim=24, num_layers=2, num_heads=2, ffn_dim=48, codebook_size=32, conditions=(Fused("text", 16),))
    text = T5Config(vocab_size=64, dim=16, head_dim=8, ffn_dim=32, num_layers=2, num_heads=2, num_buckets=8)
    assert read.config == ModelConfig(lm, codec, text)
    assert read.tokenizer == saved


def test_arrays_are_the_tensors_of_torch(read, model):
    theirs = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    lm, text, codec = (read.variables[part] for part in ("lm", "text", "codec"))
    np.testing.assert_array_equal(lm["embed"]["embedding"][3], theirs["decoder.model.decoder.embed_tokens.3.weight"])
    np.testing.assert_array_equal(lm["head"]["kernel"][:, 2], theirs["decoder.lm_heads.2.weight"].T)
    for i, name in enumerate("qkv"):
        kernel = theirs[f"{LAYER}.self_attn.{name}_proj.weight"]
        ours = lm["layer1"]["self_attn"]["qkv"]["kernel"]
        np.testing.assert_array_equal(ours[:, i], kernel.T.reshape(24, 2, 12))
    query = lm["layer1"]["cross_attn"]["query"]["kernel"]
    np.testing.assert_array_equal(query.reshape(24, 24).T, theirs[f"{LAYER}.encoder_attn.q_proj.weight"])
    for i, name in enumerate("kv"):
        ours = lm["layer1"]["cross_attn"]["kv"]["kernel"][:, i]
        np.testing.assert_array_equal(ours.reshape(24, 24).T, theirs[f"{LAYER}.encoder_attn.{name}_proj.weight"])
    out = lm["layer1"]["self_attn"]["out"]["kernel"]
    np.testing.assert_array_equal(out.reshape(24, 24).T, theirs[f"{LAYER}.self_attn.out_proj.weight"])
    np.testing.assert_array_equal(lm["text_proj"]["kernel"].T, theirs["enc_to_dec_proj.weight"])
    np.testing.assert_array_equal(text["embed"]["embedding"], theirs["text_encoder.shared.weight"])
    ffn = text["block1"]["ffn"]["down"]["kernel"]
    np.testing.assert_array_equal(ffn.T, theirs["text_encoder.encoder.block.1.layer.1.DenseReluDense.wo.weight"])
    up = codec["params"]["decoder"]["block0"]["up"]
    prefix = "audio_encoder.decoder.layers.3.conv"
    g, v = (theirs[f"{prefix}.parametrizations.weight.original{i}"] for i in (0, 1))
    np.testing.assert_array_equal(up["kernel"], v.transpose(2, 0, 1))
    np.testing.assert_array_equal(up["scale"], g[:, 0, 0])
    down = codec["params"]["encoder"]["block1"]["down"]["kernel"]
    v = theirs["audio_encoder.encoder.layers.6.conv.parametrizations.weight.original1"]
    np.testing.assert_array_equal(down, v.transpose(2, 1, 0))
    lstm = codec["params"]["encoder"]["lstm"]["layer1"]["hidden_kernel"]
    np.testing.assert_array_equal(lstm, theirs["audio_encoder.encoder.layers.7.lstm.weight_hh_l1"])
    flags = [theirs[f"audio_encoder.quantizer.layers.{q}.codebook.inited"][0] for q in range(4)]
    np.testing.assert_array_equal(codec["codebooks"]["inited"], flags)


def test_shapes_are_those_of_the_config(read):
    found = {path[1:]: array.shape for path, array in flat(read.variables).items()}
    assert found == shapes.model_shapes(read.config)
    assert all(array.dtype == np.float32 for array in flat(read.variables).values())


def as_torch_bin(directory):
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def as_both_aliases(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["text_encoder.encoder.embed_tokens.weight"] = tensors["text_encoder.shared.weight"].clone()
    tensors["decoder.model.decoder.embed_positions.weights"] = torch.zeros(2048, 24)
    save_file(tensors, directory / "model.safetensors")


def rename(*pairs):
    def change(name):
        for old, new in pairs:
            name = name.replace(old, new)
        return name

    return lambda directory: rename_keys(directory, change)


# A new model of transformers has torch's new names of weight norm; every published file has the old ones.
OLD_NAMES = (".parametrizations.weight.original0", ".weight_g"), (".parametrizations.weight.original1", ".weight_v")


FORMS = {
    "torch-bin": as_torch_bin,
    "both-aliases": as_both_aliases,
    "old-names": rename(*OLD_NAMES),
    "embed-tokens": rename(("text_encoder.shared.", "text_encoder.encoder.embed_tokens.")),
    "dangling-index": lambda directory: (directory / "model.safetensors.index.fp32.json").write_text("{}"),
    "broken-variant": lambda directory: (directory / "model.fp16.safetensors").write_text("broken"),
    "broken-bin": lambda directory: (directory / "pytorch_model.bin").write_text("broken"),
    "only-variant": lambda directory: (directory / "model.safetensors").rename(directory / "model.fp32.safetensors"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_files(copied, read, form):
    FORMS[form](copied)
    assert_same(huggingface.read_model(copied, place=as_numpy).variables, read.variables)


@pytest.mark.parametrize("bin_files", [False, True])
def test_shards(model, read, tmp_path, bin_files):
    directory = save(model, tmp_path / "sharded", max_shard_size="50KB")
    index = directory / "model.safetensors.index.json"
    shards = sorted(directory.glob("model-*.safetensors"))
    assert len(shards) > 2
    if bin_files:
        weight_map = json.loads(index.read_text())["weight_map"]
        weight_map = {name: file.replace("safetensors", "bin") for name, file in weight_map.items()}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        for shard in shards:
            torch.save(load_file(shard), shard.with_suffix(".bin"))
            shard.unlink()
    assert_same(huggingface.read_model(directory, place=as_numpy).variables, read.variables)
    next(directory.glob("model-00002*")).unlink()
    with pytest.raises(CheckpointError, match=r"no weights.*also needs model-00002"):
        huggingface.read_model(directory, place=as_numpy)


def test_an_index_without_shards_does_not_hide_a_complete_file(copied, read):
    as_torch_bin(copied)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(huggingface.read_model(copied, place=as_numpy).variables, read.variables)
    (copied / "pytorch_model.bin").unlink()
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside the directory"):
        huggingface.read_model(copied, place=as_numpy)


def test_half_precision(copied, read, model):
    tensors = load_file(copied / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, copied / "model.safetensors")
    halves = flat(huggingface.read_model(copied, place=as_numpy).variables)
    for name, array in flat(read.variables).items():
        assert halves[name].dtype == np.float32
        np.testing.assert_array_equal(halves[name], array.astype(np.float16).astype(np.float32))


def test_arrays_of_jax_unless_placed(saved, read):
    ours = huggingface.read_model(saved)
    assert all(isinstance(array, jax.Array) for array in jax.tree.leaves(ours.variables))
    assert_same(ours.variables, read.variables)


def test_dtype_and_place(saved, read):
    placed = {}

    def place(path, array):
        assert isinstance(array, np.ndarray)
        assert array.flags.c_contiguous
        placed["/".join(path)] = array.shape
        return array

    cast = huggingface.read_model(saved, dtype="bfloat16", place=place)
    assert placed == shapes.model_shapes(read.config)
    for name, array in flat(cast.variables).items():
        original = flat(read.variables)[name]
        assert array.dtype == (np.float32 if name.startswith("/codec") else jnp.bfloat16), name
        np.testing.assert_array_equal(array, original.astype(array.dtype))


def test_stereo(tmp_path):
    model = musicgen(num_codebooks=8, audio_channels=2)
    read = huggingface.read_model(save(model, tmp_path / "stereo"), place=as_numpy)
    assert read.config.channels == 2
    assert read.config.codec.channels == 1
    assert read.config.lm.delays == (0, 0, 1, 1, 2, 2, 3, 3)
    check_round_trip(model, read, tmp_path)


def test_melody(tmp_path):
    model = melody()
    read = huggingface.read_model(save(model, tmp_path / "melody"), place=as_numpy)
    assert (read.config.melody.num_bins, read.config.melody.num_frames) == (12, 7)
    assert [(one.name, one.fuse) for one in read.config.lm.conditions] == [("melody", "prefix"), ("text", "prefix")]
    weight = model.audio_enc_to_dec_proj.weight.detach().numpy()
    np.testing.assert_array_equal(read.variables["lm"]["melody_proj"]["kernel"], weight.T)
    check_round_trip(model, read, tmp_path)


@pytest.mark.parametrize(
    "parts",
    [
        dict(t5=t5_config(feed_forward_proj="gated-gelu")),
        dict(encodec=encodec_config(norm_type="time_group_norm", use_conv_shortcut=True)),
        dict(encodec=encodec_config(num_residual_layers=2, num_lstm_layers=1, upsampling_ratios=[2, 2, 2])),
        dict(encodec=encodec_config(sampling_rate=250, target_bandwidths=[0.3, 0.7])),
        dict(hidden_size=16),
        dict(),
    ],
    ids=["gated", "norms-and-shortcuts", "deeper", "bandwidths", "equal-widths", "plain"],
)
def test_round_trip(parts, tmp_path):
    model = musicgen(**parts)
    read = huggingface.read_model(save(model, tmp_path / "model"), place=as_numpy)
    check_round_trip(model, read, tmp_path)


def check_round_trip(model, read, tmp_path):
    """transformers -> mgjax -> transformers: no name missing or left, no bit changed."""
    native.write_model(tmp_path / "ours", read)
    ours = native.read_model(tmp_path / "ours", place=as_numpy)
    assert ours.config == read.config
    huggingface.write_model(tmp_path / "theirs", ours)
    again, info = loaded(model, tmp_path / "theirs")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    for part in ("decoder", "text_encoder", "audio_encoder"):
        theirs, ours = (m.config.to_dict()[part] for m in (model, again))
        differing = {key for key in theirs if theirs[key] != ours.get(key)}
        assert differing <= {"dtype", "_name_or_path", "num_decoder_layers", "architectures", "transformers_version"}
    assert_same(huggingface.read_model(tmp_path / "theirs", place=as_numpy).variables, read.variables)


def test_written_in_shards(read, model, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "LARGEST_SHARD", 50_000)
    huggingface.write_model(tmp_path / "model", read)
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    again, info = loaded(model, tmp_path / "model")
    assert not info["missing_keys"]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_written_files(copied, read, tmp_path):
    rename(*OLD_NAMES)(copied)
    huggingface.write_model(tmp_path / "again", read)
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(load_file(copied / "model.safetensors"))
    huggingface.write_model(tmp_path / "model", read)
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "model")
    assert (generation.guidance_scale, generation.top_k, generation.max_length) == (3.0, 250, 1200)
    assert generation.do_sample
    assert generation.decoder_start_token_id == generation.pad_token_id == 32
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "model")
    assert (type(extractor).__name__, extractor.sampling_rate) == ("EncodecFeatureExtractor", 320)


def test_sampling(copied):
    def read(**values):
        (copied / "generation_config.json").write_text(json.dumps(values))
        return huggingface.read_config(copied).sampling

    sampled = read(do_sample=True, guidance_scale=4.5, temperature=0.9, top_p=1.0)
    assert sampled == Sampling(guidance=4.5, temperature=0.9, top_k=250, top_p=0.0)
    assert read(do_sample=True, guidance_scale=1, top_k=50, top_p=0.9) == Sampling(guidance=1.0, top_k=50, top_p=0.9)
    assert read(do_sample=False, guidance_scale=None) == Sampling(temperature=0.0, guidance=1.0)
    assert read() == Sampling()
    assert read(do_sample=False, temperature=0.9).temperature == 0
    assert read(num_beams=1, repetition_penalty=None) == Sampling()
    with pytest.warns(UserWarning, match=r"generation_config.json: {'num_beams': 4} is not done here, and ignored"):
        read(num_beams=4)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.0), Sampling(guidance=1.0), Sampling(top_p=0.9), Sampling(temperature=0.7, top_k=50)],
    ids=["greedy", "no-guidance", "top-p", "plain"],
)
def test_sampling_comes_back(read, tmp_path, sampling):
    config = dataclasses.replace(read.config, sampling=sampling)
    huggingface.write_model(tmp_path / "model", dataclasses.replace(read, config=config))
    assert huggingface.read_config(tmp_path / "model").sampling == sampling


@pytest.mark.parametrize(
    "values",
    [
        {"guidance_scale": "x"},
        {"guidance_scale": [[0, 3]]},
        {"top_k": 2.5},
        {"do_sample": "no"},
        {"top_p": float("nan")},
    ],
)
def test_sampling_of_another_type_is_an_error(copied, values):
    (copied / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: .*{next(iter(values))}"):
        huggingface.read_config(copied)


def test_an_index_that_is_nested_deep(copied):
    (copied / "model.safetensors").unlink()
    index = copied / "model.safetensors.index.json"
    index.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"index\.json: is nested"):
        huggingface.read_model(copied, place=as_numpy)
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(CheckpointError, match=r"not an index of weight files"):
        huggingface.read_model(copied, place=as_numpy)


def test_tensors_that_overlap(copied):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    (copied / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*tensors overlap"):
        huggingface.read_model(copied, place=as_numpy)


def without(*left_out):
    return lambda directory: rename_keys(directory, lambda name: None if name in left_out else name)


def reshaped(name, shape):
    def change(directory):
        tensors = load_file(directory / "model.safetensors")
        save_file(tensors | {name: torch.zeros(shape)}, directory / "model.safetensors")

    return change


FC1, HEAD = f"{LAYER}.fc1.weight", "decoder.lm_heads.1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(FC1, HEAD), rf"missing \(2\): (?=.*{FC1} \(48, 24\)).*{HEAD}"),
        (reshaped("extra.weight", (2,)), r"unexpected \(1\): extra.weight \(2,\) \(model.safetensors\)"),
        (
            reshaped(FC1, (47, 24)),
            rf"another shape \(1\): {FC1} \(model.safetensors\): expected \(48, 24\), found \(47, 24\)",
        ),
        (rename((FC1, "decoder.fc9")), r"missing \(1\).*fc1.weight[\s\S]*unexpected \(1\): decoder.fc9"),
    ],
    ids=["missing", "unexpected", "misshapen", "both"],
)
def test_tensors_that_do_not_fit_are_one_error(copied, change, message):
    change(copied)
    with pytest.raises(CheckpointError, match=f"{copied}: the weights do not fit[\\s\\S]*{message}"):
        huggingface.read_model(copied, place=as_numpy)


def test_integers_are_not_weights(copied):
    tensors = load_file(copied / "model.safetensors")
    save_file(tensors | {HEAD: tensors[HEAD].to(torch.int32)}, copied / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"another type.*{HEAD}.*int32"):
        huggingface.read_model(copied, place=as_numpy)


def test_another_number_of_codebooks(copied):
    config = json.loads((copied / "config.json").read_text())
    config["decoder"]["num_codebooks"] = 8
    edit_json(copied / "config.json", decoder=config["decoder"])
    with pytest.raises(CheckpointError, match=r"config.json: the language model writes 8 codebooks, .* reads 1 x 4"):
        huggingface.read_model(copied, place=as_numpy)
    config["audio_encoder"]["target_bandwidths"] = [1.6]
    edit_json(copied / "config.json", audio_encoder=config["audio_encoder"])
    with pytest.raises(
        CheckpointError, match=r"missing \(24\): decoder.model.decoder.embed_tokens.4.weight \(33, 24\)"
    ):
        huggingface.read_model(copied, place=as_numpy)


def test_a_truncated_file_is_an_error(copied):
    path = copied / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model.safetensors.*cut off"):
            huggingface.read_model(copied, place=as_numpy)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "header is damaged"),
        (b"{" * 100, "header is damaged"),
        (b'{"a": 3}', "header is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "does not fit its 4 bytes"),
        (b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}', "does not fit its 0"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}', "impossible shape"),
        (b'{"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}', "has the type 'F4'"),
    ],
)
def test_a_damaged_header_is_an_error(copied, header, message):
    (copied / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))
    with pytest.raises(CheckpointError, match=rf"model.safetensors: .*{message}"):
        huggingface.read_model(copied, place=as_numpy)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (None, {"model_type": "bark"}, "'bark'; expected 'musicgen'"),
        ("text_encoder", {"model_type": "clap"}, "text_encoder is of the type 'clap'; only 't5'"),
        ("audio_encoder", {"model_type": "dac"}, "audio_encoder is of the type 'dac'"),
        ("decoder", {"activation_function": "relu"}, "decoder.activation_function is 'relu'; only 'gelu'"),
        ("decoder", {"scale_embedding": True}, "scale_embedding"),
        ("decoder", {"num_hidden_layers": "two"}, "num_layers: expected int, got 'two'"),
        ("text_encoder", {"feed_forward_proj": "gated-silu"}, "activation must be one of"),
        ("audio_encoder", {"norm_type": "layer"}, "norm must be one of"),
        ("audio_encoder", {"codebook_dim": 4}, "codebook_dim 4"),
    ],
)
def test_other_kinds_of_models_are_errors(copied, part, change, message):
    config = json.loads((copied / "config.json").read_text())
    edit_json(copied / "config.json", **({part: config[part] | change} if part else change))
    with pytest.raises(CheckpointError, match=f"config.json: .*{message}"):
        huggingface.read_model(copied, place=as_numpy)


def test_codec_alone_and_inside(saved, read, tmp_path):
    config = encodec_config()
    torch.manual_seed(1)
    model = randomised(transformers.EncodecModel(config))
    ours, variables = matching.read(huggingface.match_codec(save(model, tmp_path / "codec")))
    assert ours == read.config.codec
    write_encodec(tmp_path / "again", ours, variables)
    again, info = loaded(model, tmp_path / "again")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    inside_config, inside = matching.read(huggingface.match_codec(saved))
    assert inside_config == read.config.codec
    assert_same(inside, read.variables["codec"])


def test_codebooks_that_the_bandwidth_does_not_tell(saved, tmp_path):
    config, variables = matching.read(huggingface.match_codec(saved), place=as_numpy)
    write_encodec(tmp_path / "codec", dataclasses.replace(config, bandwidths=(9.9,)), variables)
    written = transformers.EncodecModel.from_pretrained(tmp_path / "codec")
    assert len(written.quantizer.layers) == 4
    assert written.quantizer.get_num_quantizers_for_bandwidth(written.config.target_bandwidths[0]) == 4


def test_a_folded_codec_is_written_with_weight_norm(saved, tmp_path):
    config, variables = matching.read(huggingface.match_codec(saved), place=as_numpy)
    arrays = flat(variables)
    folded = {}
    for name, array in arrays.items():
        if name.endswith("/kernel"):
            axes = (0, 2) if name.endswith("up/kernel") else (0, 1)
            norm = np.sqrt(np.sum(array**2, axis=axes, keepdims=True))
            scale = arrays[name.replace("kernel", "scale")]
            array = array / norm * (scale[:, None] if name.endswith("up/kernel") else scale)
        if not name.endswith("/scale"):
            folded[tuple(name.split("/")[1:])] = array
    folded["params", "decoder", "conv_out", "kernel"][...] = 0
    write_encodec(tmp_path / "codec", dataclasses.replace(config, norm="none"), unflatten_dict(folded))
    written = transformers.EncodecModel.from_pretrained(tmp_path / "codec")
    for number, path in ((3, "decoder/block0/up"), (0, "decoder/conv_in"), (-1, "decoder/conv_out")):
        weight = written.decoder.layers[number].conv.weight.detach().numpy()
        axes = (1, 2, 0) if path.endswith("up") else (2, 1, 0)
        kernel = folded[("params", *path.split("/"), "kernel")]
        np.testing.assert_allclose(weight, kernel.transpose(axes), atol=1e-6)


@pytest.mark.parametrize("proj", ["relu", "gated-gelu"])
def test_text_encoder_of_a_whole_t5(proj, tmp_path):
    torch.manual_seed(2)
    config = t5_config(feed_forward_proj=proj)
    whole = randomised(transformers.T5ForConditionalGeneration(config))
    directory = save(whole, tmp_path / "t5")
    assert any(name.startswith("decoder.") for name in load_file(directory / "model.safetensors"))
    ours, params = matching.read(huggingface.match_text_encoder(directory))
    assert ours.activation == proj
    block = whole.encoder.block[1]
    name = "wi" if proj == "relu" else "wi_1"
    up = getattr(block.layer[1].DenseReluDense, name).weight.detach().numpy()
    np.testing.assert_array_equal(params["block1"]["ffn"]["up"]["kernel"], up.T)
    if proj != "relu":
        gate = block.layer[1].DenseReluDense.wi_0.weight.detach().numpy()
        np.testing.assert_array_equal(params["block1"]["ffn"]["gate"]["kernel"], gate.T)
    assert {path[1:]: array.shape for path, array in flat(params).items()} == matching.target_shapes(t5_table(ours))


def test_text_encoder_inside(saved, read):
    config, params = matching.read(huggingface.match_text_encoder(saved))
    assert config == read.config.text
    assert_same(params, read.variables["text"])


def test_another_model_has_no_text_encoder(copied):
    (copied / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(CheckpointError, match="'whisper'; expected 't5'"):
        matching.read(huggingface.match_text_encoder(copied))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(lm=dict(pattern="parallel")), "delay pattern"),
        (dict(lm=dict(delays=(0, 2, 4, 6))), "delay pattern"),
        (dict(text=None, lm=dict(conditions=())), "text encoder"),
        (dict(lm=dict(conditions=(Fused("text", 16, "prefix"),))), "cross-attention"),
    ],
)
def test_what_transformers_does_not_know_is_not_written(read, tmp_path, change, message):
    lm = dataclasses.replace(read.config.lm, **change.pop("lm"))
    config = dataclasses.replace(read.config, lm=lm, **change)
    with pytest.raises(CheckpointError, match=message):
        huggingface.write_model(tmp_path / "model", dataclasses.replace(read, config=config))
    assert not list(tmp_path.iterdir())


def test_a_projection_between_equal_widths(tmp_path):
    read = huggingface.read_model(save(musicgen(hidden_size=16), tmp_path / "model"))
    np.testing.assert_array_equal(read.variables["lm"]["text_proj"]["kernel"], np.eye(16))
    read.variables["lm"]["text_proj"]["kernel"] *= 2
    with pytest.raises(CheckpointError, match="no projection of the text between equal widths"):
        huggingface.write_model(tmp_path / "again", read)
