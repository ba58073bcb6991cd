"""HuBERT and MERT directories: read with the numbers of transformers, or refused with one clear error."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mgjax.checkpoints.files.torch_file import CheckpointError
from mgjax.checkpoints.tables import matching
from mgjax.checkpoints.tables.hubert import match_hubert
from mgjax.conditioning.hubert import Hubert

# The group norm of the base form with layers that normalise last, and the layer norm of the large one, stable. An even
# and an odd kernel of the positions.
FORMS = {
    "base": {
        "feat_extract_norm": "group",
        "conv_bias": False,
        "do_stable_layer_norm": False,
        "num_conv_pos_embeddings": 6,
    },
    "large": {
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 7,
    },
}


def make(form: str) -> transformers.HubertModel:
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, conv_dim=(8, 10, 12),
        conv_kernel=(10, 3, 2), conv_stride=(5, 2, 2), num_conv_pos_embedding_groups=4, layer_norm_eps=1e-4,
        **FORMS[form],
    )  # fmt: skip
    model = transformers.HubertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def save(model, directory, **front):
    model.save_pretrained(directory)
    front = {"do_normalize": True, "sampling_rate": 16_000} | front
    (directory / "preprocessor_config.json").write_text(json.dumps(front))
    return directory


def edit(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def clips() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (0.3 * rng.standard_normal((2, 901)) + 0.1).astype(np.float32)


def features(directory, audio, **options):
    config, params = matching.read(match_hubert(directory), **options)
    return np.asarray(jax.jit(Hubert(config).apply)({"params": params}, jnp.asarray(audio)))


@pytest.fixture(scope="module", params=FORMS)
def saved(request, tmp_path_factory):
    model = make(request.param)
    return model, save(model, tmp_path_factory.mktemp("hubert") / request.param)


def test_features_equal_transformers(saved):
    model, directory = saved
    normalize = model.config.feat_extract_norm == "group"  # each in one of the forms
    save(model, directory, do_normalize=normalize)
    audio = clips()
    front = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    with torch.no_grad():
        values = front(list(audio), sampling_rate=16_000, return_tensors="pt").input_values
        expected = model(values).last_hidden_state.numpy()
    assert matching.read(match_hubert(directory))[0].normalize is normalize
    got = features(directory, audio)
    assert got.dtype == np.float32
    assert np.std(expected) > 0.5
    assert np.abs(got - expected).max() < 1e-4  # measured 2.5e-6


def test_mert_is_a_hubert_of_another_name(saved, tmp_path):
    """The file as it is published: torch's, with weight norm's old names, and a constant-Q part that is not used."""
    model, directory = saved
    names = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
    state = {}
    for name, tensor in model.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        state[name] = tensor
    assert "encoder.pos_conv_embed.conv.weight_g" in state
    torch.save(state | {"feature_extractor_cqt.cqt_kernels_real": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    edit(tmp_path, model_type="mert_model", sample_rate=24_000, feature_extractor_cqt=False, deepnorm=False)
    (tmp_path / "modeling_MERT.py").write_text("raise SystemExit('code that was not asked for')")
    config, params = matching.read(match_hubert(tmp_path))
    assert config.sample_rate == 24_000
    assert config.normalize
    assert jax.tree.all(jax.tree.map(np.array_equal, params, matching.read(match_hubert(directory))[1]))


def test_weights_in_another_type(saved):
    _, directory = saved
    _, params = matching.read(match_hubert(directory), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "wav2vec2"}, "model_type is 'wav2vec2'.*expected 'hubert' or 'mert_model'"),
        ({"feature_extractor_cqt": True}, "feature_extractor_cqt is True.*only False"),
        ({"deepnorm": True}, "deepnorm is True"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm is True"),
        ({"num_attention_heads": 3}, "config.json: dim must be a multiple of num_heads"),
        ({"num_hidden_layers": "three"}, "config.json: HubertConfig.num_layers: expected int"),
        ({"intermediate_size": 20}, "of another shape.*intermediate_dense"),
        ({"num_hidden_layers": 1}, r"unexpected.*encoder\.layers\.1\."),
        ({"num_hidden_layers": 3}, r"missing.*encoder\.layers\.2\."),
    ],
)
def test_another_model_is_one_clear_error(tmp_path, values, message):
    edit(save(make("base"), tmp_path), **values)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        matching.read(match_hubert(tmp_path))


def test_weights_without_positions(tmp_path):
    model = make("base")
    save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"encoder.layer_norm.weight": torch.ones(16)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no encoder\.pos_conv_embed\.conv\.weight_g"):
        matching.read(match_hubert(tmp_path))
