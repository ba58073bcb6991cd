"""Tiny random models in audiocraft's form, written by torch under the names of the published files."""

import json
import warnings

import torch
import transformers
import yaml
from written_codecs import write_compression_model

from mgjax.checkpoints import random_weights
from mgjax.checkpoints.tables import shapes
from mgjax.config.model import CodecConfig

RATE = 1600  # hertz, of the codec
CODEC = CodecConfig(
    sample_rate=RATE, num_filters=2, ratios=(4, 2), num_lstm_layers=1, latent_dim=6, codebook_size=24, norm="none"
)
DIM, LAYERS, CODEBOOKS, CODES = 24, 1, 4, 24
CONDITIONER = "condition_provider.conditioners"


def language_model(conditions, *, crossed=False):
    """The arrays of the language model; `conditions` are the widths of its conditioners by their names."""
    noise = torch.Generator().manual_seed(0)

    def random(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=noise)

    state = {f"emb.{k}.weight": random(CODES + 1, DIM) for k in range(CODEBOOKS)}
    state |= {f"linears.{k}.weight": random(CODES, DIM, scale=0.5) for k in range(CODEBOOKS)}
    for i in range(LAYERS):
        there = f"transformer.layers.{i}"
        for attention in ("self_attn", "cross_attention") if crossed else ("self_attn",):
            state[f"{there}.{attention}.in_proj_weight"] = random(3 * DIM, DIM, scale=0.4)
            state[f"{there}.{attention}.out_proj.weight"] = random(DIM, DIM, scale=0.4)
        state |= {f"{there}.linear1.weight": random(2 * DIM, DIM, scale=0.3)}
        state |= {f"{there}.linear2.weight": random(DIM, 2 * DIM, scale=0.3)}
        for norm in ("norm1", "norm_cross", "norm2") if crossed else ("norm1", "norm2"):
            state |= {f"{there}.{norm}.weight": 1 + random(DIM, scale=0.1), f"{there}.{norm}.bias": random(DIM)}
    state |= {"out_norm.weight": 1 + random(DIM, scale=0.1), "out_norm.bias": random(DIM, scale=0.1)}
    for name, width in conditions.items():
        state[f"{CONDITIONER}.{name}.output_proj.weight"] = random(DIM, width, scale=2 * width**-0.5)
        state[f"{CONDITIONER}.{name}.output_proj.bias"] = random(DIM)
    return state


def quantizer(prefix, num_codebooks, size, dim):
    """The arrays of a residual vector quantizer."""
    noise = torch.Generator().manual_seed(1)
    state = {}
    for q in range(num_codebooks):
        words = torch.randn(size, dim, generator=noise) * 0.6**q
        level = {"inited": torch.ones(1), "cluster_size": torch.ones(size), "embed": words, "embed_avg": words.clone()}
        state |= {f"{prefix}.vq.layers.{q}._codebook.{name}": value for name, value in level.items()}
    return state


def run(conditioners, fuser, **more):
    """xp.cfg of the language model, as far as it matters."""
    lm = {"dim": DIM, "num_heads": 2, "num_layers": LAYERS, "hidden_scale": 2, "n_q": CODEBOOKS, "card": CODES}
    content = {"sample_rate": RATE, "lm_model": "transformer_lm", "transformer_lm": lm, "conditioners": conditioners}
    content |= {"fuser": {"sum": [], "cross": [], "prepend": [], "input_interpolate": []} | fuser}
    content |= {"codebooks_pattern": {"modeling": "delay", "delay": {"delays": [0, 1, 2, 3]}}}
    return content | {"dataset": {"segment_duration": 2.0}} | more


def write(directory, state, run):
    """The two files of a model."""
    codec = random_weights.random_arrays(shapes.codec_shapes(CODEC), seed=3)
    write_compression_model(directory, CODEC, codec)
    torch.save({"best_state": state, "xp.cfg": yaml.safe_dump(run), "version": "1.4.0"}, directory / "state_dict.bin")
    return directory


def save(model, directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
    return directory


def t5(directory, words):
    """A T5 and a tokenizer that knows `words`."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    model = transformers.T5EncoderModel(transformers.T5Config(**sizes, relative_attention_num_buckets=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    save(model, directory)
    vocab = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", -9.0], *([word, -1.0] for word in words)]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": False},
    }  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory
