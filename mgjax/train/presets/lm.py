"""Language models to train: `--config=lm:NAME`.

    mgjax train lm --config=lm:mini_beginning --workdir=runs/beginning \
        --config.codec=runs/codec/best --config.vocabulary=words --config.data.corpora="('tokens',)"

where `tokens` is a folder that `mgjax corpus tokenize` made with that codec. Any setting can be overridden in the same
way; `lm:finetune --config.init=MODEL` goes on from a model that `mgjax.load` opens. Each function below is a run; its
docstring says what it needs.

The published models were trained on 20 000 hours of music: 1 000 000 steps of 192 clips of 30 s, in float16 on 32, 64
and 96 A100 GPUs (small, medium, large). None of the three has been run here.
"""

from typing import Any

from ml_collections import ConfigDict

from mgjax.checkpoints import random_weights
from mgjax.config import published
from mgjax.config.conditioning import MelodyConfig, StyleConfig, T5Config
from mgjax.config.model import Fused, LMConfig, Sampling
from mgjax.lm.lora import LoraConfig
from mgjax.train.lm import LMRun
from mgjax.train.overrides import to_config_dict


def get_config(name: str = "small") -> ConfigDict:
    """The settings of the run `name`, one of `VARIANTS`; raises ValueError if there is none of that name."""
    if name not in VARIANTS:
        raise ValueError(f"the preset lm has {', '.join(VARIANTS)}, not {name!r}")
    config = to_config_dict(LMRun())
    VARIANTS[name](config)
    return config


def recipe(config: ConfigDict) -> None:
    """The settings that all published models share. T5 and the codec come from the Hugging Face Hub, or from folders.

    Weights are split among 64 devices, or all of fewer devices, and gathered once in a training step.
    """
    config.update(codec=published.ENCODEC, text_encoder="t5-base", dtype="bfloat16", remat="weights")
    config.mesh.fsdp = 64


def small(config: ConfigDict) -> None:
    """musicgen-small, 420 million weights, with D-Adaptation, which finds the learning rate itself. Not run here."""
    recipe(config)
    config.optim.update(name="dadapt_adamw", learning_rate=1.0)


def medium(config: ConfigDict) -> None:
    """musicgen-medium, 1.8 billion weights. Not run here."""
    recipe(config)
    config.lm = to_config_dict(published.MEDIUM)


def large(config: ConfigDict) -> None:
    """musicgen-large, 3.3 billion weights. Not run here."""
    recipe(config)
    config.lm = to_config_dict(published.LARGE)
    config.dropout.conditions = 0.2
    config.text.word_dropout = 0.2
    config.optim.max_grad_norm = 3.0


def melody(config: ConfigDict) -> None:
    """musicgen-melody: medium, with the text and the melody's chromagram as a prefix. Not run here.

    Codes are made with `mgjax corpus tokenize --melody`; in the published training, melodies were of music without
    drums and bass.
    """
    medium(config)
    config.lm.conditions = published.MELODY_CONDITIONS
    settle(config, "melody", MelodyConfig())
    config.dropout.conditions = 0.2
    config.text.word_dropout = 0.2


def style(config: ConfigDict) -> None:
    """musicgen-style: medium, with the style of a three-second excerpt and the text as a prefix. Not run here.

    The style is of MERT's features, so the corpora are of audio. MERT comes from the Hugging Face Hub, or a folder.
    """
    medium(config)
    config.lm.conditions = published.STYLE_CONDITIONS
    settle(config, "style", StyleConfig())
    config.style_encoder = published.MERT
    config.dropout.update(conditions=0.1, text=0.4, style=0.4)
    config.text.word_dropout = 0.2


def settle(config: ConfigDict, name: str, values: Any) -> None:
    """Sets a part of the config that is None by default, so that its own settings can be overridden."""
    with config.unlocked():
        del config[name]
        config[name] = to_config_dict(values)


def stereo(config: ConfigDict) -> None:
    """musicgen-stereo-small: 200 000 steps from the mono model, with interleaved codes of left and right.

    Not run here.
    """
    small(config)
    config.lm = None
    config.update(init="facebook/musicgen-small", codec=None, text_encoder=None, channels=2)
    config.loop.steps = 200_000


def finetune(config: ConfigDict) -> None:
    """Trains all weights of `--config.init`, any model that `mgjax.load` opens, on your music. Not run here."""
    config.lm = None
    config.update(dtype="bfloat16", remat="dots")
    config.data.batch_size = 8
    config.optim.update(learning_rate=1e-5, warmup_steps=100)
    config.loop.update(steps=2000, eval_every=200, save_every=200)


def lora(config: ConfigDict) -> None:
    """Trains a LoRA adapter of `--config.init`, as `mgjax finetune` does. Not run here."""
    finetune(config)
    settle(config, "lora", LoraConfig(rank=16, alpha=32.0))
    config.optim.update(learning_rate=5e-4, average_decay=0.0)


def mini_beginning(config: ConfigDict) -> None:
    """The bundled model's language model, first part: text and melody, learned from short segments on two CPU cores.

    For the codes of `codec:mini`, made with `mgjax corpus tokenize --melody 0.1707`. Its text encoder is new and is
    trained too, on the vocabulary in `--config.vocabulary=DIR` that `mgjax corpus vocabulary` makes. Texts matter most
    for the first seconds, which later ones continue, so the segments are short and many. Unlike the published recipe
    it has Muon and embeddings initialised from the codebooks, without which so few steps would not suffice.
    """
    config.lm = to_config_dict(
        LMConfig(
            dim=256,
            num_layers=6,
            num_heads=4,
            ffn_dim=1024,
            num_codebooks=8,
            codebook_size=1024,
            delays=tuple(range(8)),
            conditions=(Fused("text", 128), Fused("melody", 12, "interpolate")),
        )
    )
    settle(config, "new_text", T5Config(dim=128, head_dim=32, ffn_dim=512, num_layers=3, num_heads=4))
    chroma = MelodyConfig(sample_rate=24_000, fft_size=4096, hop_length=1024, num_frames=235, null="nothing")
    settle(config, "melody", chroma)
    config.update(codes_as_heard=True, window_seconds=10.0)
    on_two_cores(config)
    config.data.update(batch_size=48, segment_seconds=2.5)
    config.optim.schedule = "constant"
    config.loop.steps = 1500


def mini(config: ConfigDict) -> None:
    """The bundled model's language model, second part: the first, `--config.init=DIR`, goes on with longer segments."""
    config.lm = None
    config.update(init="runs/beginning/best")
    settle(config, "sampling", Sampling(guidance=7.0, temperature=(1.1, 1.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)))
    on_two_cores(config)
    config.data.update(batch_size=12, segment_seconds=10.0)
    config.loop.steps = 2400


def on_two_cores(config: ConfigDict) -> None:
    """The settings that both parts of the bundled model's training share."""
    config.update(train_text=True, text_rate=0.1, scan_layers=False)
    config.codebook_weights = (4.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5)
    config.text.word_dropout = 0.05
    config.dropout.update(conditions=0.15, text=0.05, melody=0.6)
    config.optim.update(name="muon", learning_rate=0.03, adam_learning_rate=3e-3, warmup_steps=100)
    config.optim.update(average_decay=0.995, average_every=1)
    config.loop.update(log_every=50, eval_every=500, save_every=250, show_every=1500)


def debug(config: ConfigDict) -> None:
    """The language model of "debug", to try the trainer: seconds on a laptop, and no music."""
    config.lm = to_config_dict(random_weights.DEBUG.lm)
    config.update(codec="debug", text_encoder="debug", prompt_seconds=2.0)
    config.data.update(batch_size=4, segment_seconds=2.0)
    config.text.max_tokens = 256  # of bytes
    config.optim.update(learning_rate=3e-3, warmup_steps=10, average_every=1, average_decay=0.9)
    config.loop.update(steps=100, log_every=10, eval_every=50, show_every=50, save_every=50)


_ALL = (small, medium, large, melody, style, stereo, finetune, lora, mini_beginning, mini, debug)
VARIANTS = {variant.__name__: variant for variant in _ALL}
