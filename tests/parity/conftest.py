"""Tiny MusicGen models of transformers with random weights, saved as published ones are."""

import io

import numpy as np
import pytest
import sentencepiece
import torch
import transformers

WORDS = [
    "a",
    "slow",
    "waltz",
    "on",
    "accordion",
    "with",
    "walking",
    "bass",
    "80s",
    "synth",
    "pop",
    "driving",
    "drums",
    "and",
    "heavy",
    "guitar",
]
VOCABULARY = 40


@pytest.fixture(scope="session")
def spiece():
    """The bytes of a small sentencepiece vocabulary, made as that of T5 was."""
    model = io.BytesIO()
    chance = np.random.default_rng(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(chance.choice(WORDS, 8)) for _ in range(300)]),
        model_writer=model,
        vocab_size=VOCABULARY,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def build(tmp_path_factory, spiece):
    """A function that makes a model of transformers and its directory; the same form is made only once."""
    made = {}

    def build(*, stereo=False, flan=False, melody=False):
        form = (stereo, flan, melody)
        if form not in made:
            torch.manual_seed(0)
            model = _model(stereo, flan, melody)
            directory = tmp_path_factory.mktemp("checkpoint")
            model.save_pretrained(directory)
            (directory / "spiece.model").write_bytes(spiece)
            made[form] = model, directory
        return made[form]

    return build


def _model(stereo, flan, melody):
    text = transformers.T5Config(
        vocab_size=100,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu" if flan else "relu",
        dropout_rate=0.0,
    )
    audio = transformers.EncodecConfig(
        target_bandwidths=[1.5],
        sampling_rate=8000,
        num_filters=4,
        upsampling_ratios=[5, 4, 4, 2],
        codebook_size=64,
        codebook_dim=16,
        hidden_size=16,
        use_causal_conv=False,
        use_conv_shortcut=False,
        pad_mode="reflect",
        norm_type="weight_norm",
    )
    sizes = dict(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=96,
        num_codebooks=10 if stereo else 5,
        audio_channels=2 if stereo else 1,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        pad_token_id=64,
        bos_token_id=64,
    )
    if melody:
        decoder = transformers.MusicgenMelodyDecoderConfig(**sizes)
        config = transformers.MusicgenMelodyConfig(
            text_encoder=text.to_dict(), audio_encoder=audio.to_dict(), decoder=decoder.to_dict(), chroma_length=7
        )
        model = transformers.MusicgenMelodyForConditionalGeneration(config)
    else:
        decoder = transformers.MusicgenDecoderConfig(**sizes)
        config = transformers.MusicgenConfig(
            text_encoder=text.to_dict(), audio_encoder=audio.to_dict(), decoder=decoder.to_dict()
        )
        model = transformers.MusicgenForConditionalGeneration(config)
    model.generation_config.decoder_start_token_id = 64
    model.generation_config.pad_token_id = 64
    model.generation_config.bos_token_id = 64
    with torch.no_grad():
        # As initialised, the logits are all but equal and greedy decoding is a coin toss.
        for name, parameter in model.named_parameters():
            if name.startswith("decoder") and parameter.ndim == 2:
                parameter.mul_(8.0)
            if "norm" in name and name.endswith("bias"):
                parameter.normal_(std=0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("codebook.embed"):
                buffer.normal_()
    return model.eval()
