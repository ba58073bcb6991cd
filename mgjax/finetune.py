"""Fine-tuning on a folder of music, from its files to an adapter: what `mgjax finetune` does, step by step."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax

from mgjax import api, formats
from mgjax.config import ModelConfig
from mgjax.data import audio, build, loudness, sources, tokenize
from mgjax.data.corpus_writing import replacing
from mgjax.data.metadata import Metadata
from mgjax.data.pipeline import DataConfig
from mgjax.data.prompts import FIELDS, TextConfig
from mgjax.lm.lora import LoraConfig
from mgjax.strict_json import ConfigError
from mgjax.train import lm
from mgjax.train.lm_run import LMRun
from mgjax.train.optim import OptimConfig
from mgjax.train.task import LoopConfig

Captions = Literal["files", "names"]
Stage = Callable[[str], contextlib.AbstractContextManager[Callable[[int, int], None] | None]]

_LONGEST = 30.0  # seconds of a segment, at most: what the published models learned from
_PROMPTS = 2  # captions of the music that are listened to
_LOUDNESS = -14.0  # LUFS, of what is listened to


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """What is tuned to which music, and how far.

    Attributes:
      music: A folder of sound files, or a manifest, as `mgjax corpus build` takes them.
      model: What `mgjax.load` opens.
      caption: One text for all pieces; None for a text of their own.
      captions: Where these are: in the "files" beside them (JSON), or in the "names" of the files.
      full: Whether all weights learn, rather than an adapter beside them.
      rank: Of the adapter.
      steps: Updates.
      batch_size: Segments in an update.
      segment_seconds: Their length; None for as long as the model hears at once, 30 s at most.
      learning_rate: The highest one; None for 5e-4 for an adapter and 1e-5 for all weights.
      seed: Of all that is drawn.
      workers: Processes that prepare the music.
    """

    music: str
    model: str
    caption: str | None = None
    captions: Captions = "files"
    full: bool = False
    rank: int = 16
    steps: int = 500
    batch_size: int = 4
    segment_seconds: float | None = None
    learning_rate: float | None = None
    seed: int = 0
    workers: int = 1


def finetune(tuning: Finetuning, directory: Path, stage: Stage) -> bool:
    """Whether it is done; False where it was asked to stop before, and goes on when it is called again.

    `directory` then holds the adapter, or with `full` the model; `clips`, what the model made of some captions before
    and after; and `run`, the folder of the training with its curves, beside the corpora that were made for it.

    Args:
      tuning: What is asked for.
      directory: Where to.
      stage: Is told the name of each part of the work, and gives what its progress is told to.

    Raises:
      ConfigError: The music, the model and the settings do not fit together, or the pieces have no captions.
      CorpusError: The music cannot be read.
      CheckpointError: There is no model.
    """
    base = formats.read_config(tuning.model)
    if base.text is None and base.clap is None:
        raise ConfigError(f"{tuning.model} is not told by texts: train it with launch/train_lm.py, on a corpus")
    work = directory.resolve() / "run"
    work.mkdir(parents=True, exist_ok=True)
    texts = write_captions(tuning, work / "music.jsonl")
    corpus = _corpus(tuning, base, work, stage)
    config = run_of(tuning, base, str(corpus), texts[:_PROMPTS])
    state = lm.run(config, work)
    if int(state.step) < tuning.steps:
        return False
    for file in sorted((work / "best").iterdir()):
        with open(file, "rb") as written, replacing(directory / file.name) as copy:
            shutil.copyfileobj(written, copy)
    with stage("clips"):
        _compare(tuning, directory, texts[:_PROMPTS], min(8.0, base.window_seconds))
    return True


def write_captions(tuning: Finetuning, path: Path) -> list[str]:
    """The captions of the pieces, each once, after a manifest of the pieces with their captions is at `path`.

    Raises:
      ConfigError: There are pieces without one.
      CorpusError, FileNotFoundError: There is no music.
    """
    rows, without = [], []
    for source in sources.find(tuning.music):
        if not isinstance(source, sources.FileSource):
            raise ConfigError(f"{tuning.music}: give a folder of sound files, or a table of them (.csv, .jsonl)")
        known = source.metadata()
        text = tuning.caption or (spoken(Path(source.path).stem) if tuning.captions == "names" else _told(known))
        if not text:
            without.append(source.name)
        rows.append({"path": source.path, **known.to_dict(), "description": text})
    if without:
        raise ConfigError(
            f"{len(without)} of {len(rows)} pieces have no caption, {without[0]} among them. Put a JSON file beside "
            'each ({"description": "a slow waltz on accordion"} in waltz.json for waltz.wav), or give one caption for '
            "all by --caption, or take the names of the files by --captions names"
        )
    if len(rows) < 2:
        raise ConfigError(
            f"{tuning.music}: there must be two pieces or more, of which some are kept to validate: cut it"
        )
    with replacing(path) as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return list(dict.fromkeys(row["description"] for row in rows))


def spoken(name: str) -> str:
    """The name of a file as a caption: without the number of a track before it, its words apart.

    "03 - Slow_waltz-on-accordion" is "Slow waltz on accordion".
    """
    words = re.sub(r"[\W_]+", " ", name).strip()
    return re.sub(r"^\d+ (?=\D)", "", words)


def run_of(tuning: Finetuning, base: ModelConfig, corpus: str, prompts: list[str]) -> LMRun:
    """The training that `tuning` asks for, of a model that is `base`, on `corpus`."""
    every = max(1, tuning.steps // 5)
    on_cpu = jax.default_backend() == "cpu"
    return LMRun(
        lm=None,
        init=os.path.abspath(tuning.model) if os.path.isdir(tuning.model) else tuning.model,
        lora=None if tuning.full else LoraConfig(rank=tuning.rank, alpha=2.0 * tuning.rank),
        channels=base.channels,
        window_seconds=base.window_seconds,
        data=DataConfig(
            corpora=(corpus,),
            batch_size=tuning.batch_size,
            segment_seconds=tuning.segment_seconds or min(base.window_seconds, _LONGEST),
        ),
        text=TextConfig(word_dropout=0.1),
        optim=OptimConfig(
            learning_rate=tuning.learning_rate or (1e-5 if tuning.full else 5e-4),
            warmup_steps=min(50, tuning.steps // 5),
            average_decay=0.0,
        ),
        loop=LoopConfig(
            steps=tuning.steps,
            seed=tuning.seed,
            log_every=max(1, tuning.steps // 50),
            eval_every=every,
            save_every=every,
            show_every=0 if on_cpu else every,
        ),
        dtype="float32" if on_cpu else "bfloat16",
        remat="none" if on_cpu else "dots",
        prompts=tuple(prompts),
        prompt_seconds=min(8.0, base.window_seconds),
    )


def _corpus(tuning: Finetuning, base: ModelConfig, work: Path, stage: Stage) -> Path:
    """The corpus to train on: of codes, or of sound where the model has to hear it."""
    with stage("read the music") as progress:
        build.build(
            work / "music.jsonl",
            work / "sound",
            sample_rate=base.codec.sample_rate,
            channels=base.channels,
            valid=0.1,
            workers=tuning.workers,
            progress=progress,
        )
    if base.clap is not None or (base.style is not None and base.style.features is not None):
        return work / "sound"
    with stage("encode it") as progress:
        tokenize.tokenize(
            work / "sound",
            work / "codes",
            tuning.model,
            channels=base.channels,
            melody=base.melody,
            workers=tuning.workers,
            progress=progress,
        )
    return work / "codes"


def _told(known: Metadata) -> str | None:
    """The description of a piece, or one of all else that is known of how it sounds."""
    if known.description:
        return known.description
    values = {field: getattr(known, field) for field in FIELDS}
    parts = [
        f"{field}: {', '.join(value) if isinstance(value, tuple) else value}"
        for field, value in values.items()
        if value
    ]
    return ". ".join(parts) or None


def _compare(tuning: Finetuning, directory: Path, texts: list[str], seconds: float) -> None:
    """Writes what the model made of `texts` before, and what it makes of them now, from the same chances."""
    clips = directory / "clips"
    clips.mkdir(exist_ok=True)
    after = {"source": directory} if tuning.full else {"source": tuning.model, "adapter": directory}
    for name, given in (("before", {"source": tuning.model}), ("after", after)):
        model = api.load(**given)
        for number, sound in enumerate(model.generate(texts, seconds=seconds, seed=tuning.seed), 1):
            sound = loudness.normalized(sound, model.sample_rate, _LOUDNESS)
            audio.write(clips / f"{number} {name}.wav", sound, model.sample_rate)
