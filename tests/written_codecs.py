"""Codecs alone in the forms of other libraries, which mgjax reads and writes as parts of models only."""

import json

from mgjax.checkpoints import audiocraft, audiocraft_config, huggingface_config
from mgjax.checkpoints.files import safetensors
from mgjax.checkpoints.tables import matching, musicgen
from mgjax.codec import weight_norm


def write_encodec(directory, config, variables):
    """An EncodecModel of transformers."""
    config, variables = weight_norm.unfold(config, variables)
    directory.mkdir(parents=True, exist_ok=True)
    values = {"architectures": ["EncodecModel"]} | huggingface_config.codec_values(config)
    (directory / "config.json").write_text(json.dumps(values))
    features = huggingface_config.feature_extractor_values(config, config.channels)
    (directory / "preprocessor_config.json").write_text(json.dumps(features))
    safetensors.write(directory, matching.export(musicgen.huggingface_codec(config), variables))


def write_compression_model(directory, config, variables):
    """A compression_state_dict.bin of audiocraft."""
    directory.mkdir(parents=True, exist_ok=True)
    state = matching.export(musicgen.audiocraft_codec(config), variables)
    audiocraft._write_package(directory / audiocraft.CODEC_FILE, state, audiocraft_config.codec_run(config))
