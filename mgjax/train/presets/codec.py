"""Codecs to train: `--config=codec:NAME`.

    mgjax train codec --config=codec:mini --workdir=runs/codec --config.data.corpora="('corpus',)"

where `corpus` is a folder that `mgjax corpus build` made, at the codec's rate. Any setting can be overridden in the
same way. Each function below is a run; its docstring says what it needs.
"""

from ml_collections import ConfigDict

from mgjax.checkpoints import random_weights
from mgjax.train.codec import CodecRun
from mgjax.train.overrides import to_config_dict


def get_config(name: str = "32khz") -> ConfigDict:
    """The settings of the run `name`, one of `VARIANTS`; raises ValueError if there is none of that name."""
    if name not in VARIANTS:
        raise ValueError(f"the preset codec has {', '.join(VARIANTS)}, not {name!r}")
    config = to_config_dict(CodecRun())
    VARIANTS[name](config)
    return config


def khz32(config: ConfigDict) -> None:
    """The codec of MusicGen, `facebook/encodec_32khz`: 50 frames a second of 4 codes out of 2048, 2.2 kb/s.

    The published recipe is the default of every setting: batch 64 of 1 s, 400 000 steps, on 8 GPUs. Not run here.
    """


def khz24(config: ConfigDict) -> None:
    """EnCodec's own, causal codec for any sound: 75 frames a second of up to 32 codes out of 1024, 1.5 to 24 kb/s.

    Each batch goes through a random number of codebooks, so that the first ones can be used alone. Not run here.
    """
    config.model.update(sample_rate=24_000, num_filters=32, ratios=(8, 5, 4, 2), causal=True, pad_mode="constant")
    config.model.update(num_codebooks=32, codebook_size=1024, bandwidths=(1.5, 3.0, 6.0, 12.0, 24.0))
    config.quantizer.dropout = True


def khz16(config: ConfigDict) -> None:
    """The codec of AudioGen: 16 kHz, 50 frames a second of 4 codes out of 2048. Not run here."""
    config.model.update(sample_rate=16_000, ratios=(8, 5, 4, 2))


def eight_by_1024(config: ConfigDict) -> None:
    """32 kHz by 8 smaller codebooks: 50 frames a second of 8 codes out of 1024, 4 kb/s. Not run here."""
    config.model.update(num_codebooks=8, codebook_size=1024, bandwidths=(4.0,))


def mini(config: ConfigDict) -> None:
    """The codec of the bundled model: 24 kHz, 25 frames a second of 8 codes out of 1024, 2 kb/s; for two CPU cores."""
    config.model.update(sample_rate=24_000, phases=8, num_filters=48, ratios=(5, 6, 4), latent_dim=64)
    config.model.update(num_residual_layers=3, num_lstm_layers=0)
    config.model.update(num_codebooks=8, codebook_size=1024, bandwidths=(2.0,))
    config.loss.update(mel_sizes=(128, 256, 512, 1024, 2048), num_mels=(10, 20, 80, 512, 1024))
    config.loss.update(l1=0.5, adversarial=0.0, feature=0.0)
    config.quantizer.update(decay=0.985, dead_below=0.4)
    config.optim.update(learning_rate=1e-3, schedule="cosine", warmup_steps=200, b1=0.8, b2=0.99, average_decay=0.999)
    config.data.batch_size = 8
    config.loop.update(steps=14000, log_every=50, eval_every=1000, save_every=500, show_every=7000)


def debug(config: ConfigDict) -> None:
    """The codec of the model "debug", to try the trainer: seconds on a laptop, and no useful sound."""
    config.model = to_config_dict(random_weights.DEBUG.codec)
    config.discriminator.update(stft_filters=4, stft_sizes=(1024, 256))
    config.data.batch_size = 4
    config.loop.update(steps=100, log_every=10, eval_every=50, show_every=50, save_every=50)


VARIANTS = {"32khz": khz32, "24khz": khz24, "16khz": khz16, "8x1024": eight_by_1024, "mini": mini, "debug": debug}
