"""Fine-tunes a model on a folder of music: corpus, training, adapter and clips to compare, as `mgjax finetune` does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax

from mgjax import api
from mgjax.audio import files as audio_files
from mgjax.audio import loudness
from mgjax.audio.metadata import Metadata, escaped
from mgjax.checkpoints.sources import read_config
from mgjax.config.model import ModelConfig
from mgjax.data import assembly, build, sources, tokenize
from mgjax.data.pipeline import DataConfig
from mgjax.data.prompts import FIELDS, TextConfig, rendered
from mgjax.errors import ConfigError, DataError
from mgjax.inputs import claims, files
from mgjax.lm.lora import LoraConfig
from mgjax.storage import paths
from mgjax.storage.paths import Path
from mgjax.train import lm
from mgjax.train.lm.config import LMRun
from mgjax.train.lm.resolver import corpus_kind
from mgjax.train.lm.training import batch_conditions
from mgjax.train.loop import MAY_CHANGE
from mgjax.train.optim import OptimConfig
from mgjax.train.settings import check_run
from mgjax.train.task import LoopConfig

Captions = Literal["files", "names"]
Stage = Callable[[str], contextlib.AbstractContextManager[Callable[[int, int], None] | None]]

_LONGEST = 30.0  # seconds of a segment, as in the training of the published models
_NUM_CLIPS = 2
_LOUDNESS = -14.0  # LUFS, of clips

# The files beside `run`.
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "provenance.json", "clips")
_MODEL = ("config.json", "model*.safetensors*", "spiece.model", "tokenizer*.json", "clap", "provenance.json", "clips")

# The settings of a run that are options of `mgjax finetune`.
_SETTINGS = re.compile(
    r"\b(?:loop\.(steps|seed)|lora\.(rank)|(?:data\.)?(segment)_seconds|(?:data\.)?(batch_size)"
    r"|(?:optim\.)?(learning_rate))\b"
)

log = logging.getLogger("mgjax")


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """The settings of a fine-tuning."""

    music: str  # a folder of sound files, or a manifest, as for `mgjax corpus build`
    model: str  # as for `mgjax.load`
    caption: str | None = None  # one for all pieces; None for captions of their own
    captions: Captions = "files"  # where these are: in files (JSON) beside the pieces, or in the names of the pieces
    full: bool = False  # all weights are trained instead of a LoRA adapter
    rank: int = 16  # of the adapter
    steps: int = 500  # training steps
    batch_size: int = 4
    segment_seconds: float | None = None  # None for the model's window, 30 s at most
    learning_rate: float | None = None  # the peak; None for 5e-4 for an adapter and 1e-5 for all weights
    seed: int = 0
    workers: int = 1  # processes that prepare the music
    max_bad: float = 0.05  # the share of pieces that may be unusable

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be 0 or above and below 2**32, got {self.seed}")
        if self.workers < 1:
            raise ConfigError(f"workers must be 1 or more, got {self.workers}")
        if self.caption is not None and self.caption != escaped(self.caption):
            raise ConfigError(f"caption: is not text in UTF-8: {escaped(self.caption)}")


def finetune(tuning: Finetuning, directory: Path, stage: Stage, *, replace: bool = False) -> bool:
    """Fine-tunes a model; called again, an interrupted run goes on, unless it is to `replace` another run.

    `directory` then holds the adapter, or with `full` the model; the folder `clips`, music for some captions before and
    after the training; and `run`, the folder of the training with its corpora and curves. `stage` is a context of a
    stage of the work, by its name; it yields a function that reports progress, or None.

    Returns:
      Whether it is done; False where it was interrupted (SIGTERM).

    Raises:
      ConfigError: The music, the model and the settings do not fit together, or pieces have no captions.
      CorpusError: The music cannot be read.
      CheckpointError: There is no model.
      FileExistsError: `directory` holds something else, or another run is at work in it.
    """
    base = read_config(tuning.model)
    if base.text is None and base.clap is None:
        raise ConfigError(f"{tuning.model} has no text prompts: train it with launch/train_lm.py, on a corpus")
    directory, music = paths.resolved(directory), paths.resolved(tuning.music)
    if music in (directory, *directory.parents):
        raise ConfigError(
            f"{directory} lies in the music that is learned from, and would become part of it: give a folder outside"
        )
    work = directory / "run"
    _check_free(directory, _MODEL if tuning.full else _ADAPTER)
    with claims.claimed(directory), _own_words():
        _mark(work / "sound")  # for `_check_free`
        texts = write_captions(tuning, work / "music.jsonl", min(base.window_seconds, _LONGEST))
        if replace:
            paths.remove(work / "checkpoints")
        earlier = work / "config.json" if any((work / "checkpoints").glob("[0-9]*")) else None
        corpus = work / ("sound" if corpus_kind(base) == "audio" else "codes")
        config = run_of(tuning, base, str(corpus), texts[:_NUM_CLIPS], _warmup(tuning.steps, earlier))
        if earlier:
            check_run(earlier, config, MAY_CHANGE)
        elif replace or not (corpus / "corpus.json").is_file():
            batch_conditions(config, lm.pretrained(config))  # raises the model's errors before the long work
        _make_corpus(tuning, base, corpus, stage, replace)
        state = lm.run(config, work)
        if int(state.step) < tuning.steps:
            return False
        for file in paths.below(work / "best"):
            target = directory / file.relative_to(work / "best")
            paths.make_folder(target.parent)
            files.copy(file, target)
        with stage("clips"):
            _write_clips(tuning, directory, texts[:_NUM_CLIPS], min(8.0, base.window_seconds))
    return True


def _mark(folder: Path) -> None:
    """Creates a folder; in a bucket there are folders only around objects."""
    paths.make_folder(folder)
    if not isinstance(folder, pathlib.Path):
        files.write_text(folder / claims.NAME, "")


def _check_free(directory: Path, outputs: tuple[str, ...]) -> None:
    """Raises FileExistsError if `outputs` would replace files that are not of a fine-tuning."""
    work = directory / "run"
    if (work / "sound").is_dir():
        assembly.check_free(work / "sound")
    elif work.exists() and (not work.is_dir() or any(work.iterdir())):
        raise FileExistsError(f"{work}: is there already, and no run of mgjax finetune; give another folder")
    foreign = [] if (work / "best").is_dir() else [path for name in outputs for path in directory.glob(name)]
    if foreign:
        raise FileExistsError(f"{foreign[0]}: is there already, and not of a run in {work}; give another folder")


@contextlib.contextmanager
def _own_words() -> Iterator[None]:
    """Replaces the names of settings in the trainer's error messages by the options of `mgjax finetune`."""
    try:
        yield
    except (ConfigError, DataError) as error:
        message = _SETTINGS.sub(lambda match: f"--{match[match.lastindex or 0].replace('_', '-')}", str(error))
        raise ConfigError(message) from error


def _warmup(steps: int, earlier: Path | None) -> int:
    """The warm-up steps: those in the settings of the `earlier` run, if there is one, so that it can be made longer."""
    if earlier is None:
        return min(50, steps // 5)
    try:
        warmup = int(files.read_json(earlier)["optim"]["warmup_steps"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{earlier}: does not hold the settings of a run") from error
    if 0 < warmup >= steps:
        raise ConfigError(
            f"--steps must be above {warmup}, the warm-up that the run in {earlier.parent} was started with"
        )
    return warmup


def write_captions(tuning: Finetuning, path: Path, longest: float = 0.0) -> list[str]:
    """Writes a manifest of the pieces with their captions to `path`, and returns the distinct captions.

    Pieces whose metadata cannot be read, and that need it for their captions, are left to `build` to skip. Segments
    have `longest` seconds if `tuning` does not say; 0 allows pieces of any length.

    Raises:
      ConfigError: There are pieces without a caption, or all are too short.
      CorpusError, FileNotFoundError: There is no music.
    """
    rows, without, sounds = [], [], []
    notes, texts = assembly.Notes(), dict[str, None]()
    for source in sources.find(tuning.music):
        if not isinstance(source, sources.FileSource):
            raise ConfigError(f"{tuning.music}: give a folder of sound files, or a table of them (.csv, .jsonl)")
        sounds.append(source.path)
        row: dict[str, Any] = {"path": source.path}
        unused: list[str] = []
        text = tuning.caption or (spoken(paths.path(source.path).stem) if tuning.captions == "names" else None)
        try:
            metadata = source.metadata(unused)
        except (ValueError, OSError) as error:
            if text:
                notes.add(f"metadata that cannot be read is left aside: {error}", source.path)
                row["info_path"] = False
            else:
                own = {**row, "info_path": source.sidecar}
                row = own | json.loads(source.row or "{}") | own  # our own keys first, where `build` looks for paths
        else:
            text = text or _description(metadata)
            row |= metadata.to_dict()
            if not text:
                without.append(source.path)
        for key in unused:
            notes.add(build.NOT_USED.format(escaped(key)), source.path)
        if text:
            row["description"] = text
            texts[text] = None
        rows.append(row)
    notes.warn()
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
    _check_lengths(sounds, tuning.segment_seconds or longest)
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return list(texts)


def _check_lengths(paths: list[str], segment: float) -> None:
    """Raises ConfigError if all pieces are too short for a segment, by the headers of their files."""
    longest = 0.0
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            info = audio_files.info(path)
            longest = max(longest, info.num_samples / info.sample_rate)
        if longest >= DataConfig.min_segment_ratio * segment:
            return
    raise ConfigError(
        f"no piece is long enough for segments of {segment:g} s: the longest has {longest:g} s. Set --segment lower"
    )


def spoken(name: str) -> str:
    """A file name as a caption: its words, without a track number.

    "03 - Slow_waltz-on-accordion" is "Slow waltz on accordion".
    """
    words = re.sub(r"[\W_]+", " ", name).strip()
    return re.sub(r"^\d+ (?=\D)", "", words)


def run_of(tuning: Finetuning, base: ModelConfig, corpus: str, prompts: list[str], warmup: int) -> LMRun:
    """The training run of a fine-tuning of a model (`base`) on the folder `corpus`, with `prompts` for its clips."""
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
            warmup_steps=warmup,
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


def _make_corpus(tuning: Finetuning, base: ModelConfig, corpus: Path, stage: Stage, replace: bool) -> None:
    """Builds the corpus to train on: of codes, or of audio if conditions are computed from it."""
    sound = corpus.with_name("sound")
    with stage("read the music") as progress:
        report = build.build(
            corpus.with_name("music.jsonl"),
            sound,
            sample_rate=base.codec.sample_rate,
            channels=base.channels,
            valid=0.1,
            max_bad=tuning.max_bad,
            workers=tuning.workers,
            replace=replace,
            progress=progress,
        )
    if report.skipped:
        log.warning("%d pieces are left out: %s lists them", len(report.skipped), sound / "report.json")
    if corpus == sound:
        return
    with stage("encode it") as progress:
        tokenize.tokenize(
            sound,
            corpus,
            tuning.model,
            channels=base.channels,
            melody=base.melody,
            workers=tuning.workers,
            replace=replace,
            progress=progress,
        )


def _description(metadata: Metadata) -> str | None:
    """The description of a piece, or else its other fields about the music as a text."""
    if metadata.description:
        return metadata.description
    values = {field: getattr(metadata, field) for field in FIELDS}
    return ". ".join(rendered(field, value) for field, value in values.items() if value) or None


def _write_clips(tuning: Finetuning, directory: Path, texts: list[str], seconds: float) -> None:
    """Writes music for `texts` by the model before and after the fine-tuning, with the same seed."""
    clips = directory / "clips"
    paths.make_folder(clips)
    source, adapter = (directory, None) if tuning.full else (tuning.model, directory)
    for name, (weights, lora) in {"before": (tuning.model, None), "after": (source, adapter)}.items():
        model = api.load(weights, adapter=lora)
        for number, audio in enumerate(model.generate(texts, seconds=seconds, seed=tuning.seed), 1):
            audio = loudness.normalized(audio, model.sample_rate, _LOUDNESS)
            audio_files.write(clips / f"{number} {name}.wav", audio, model.sample_rate)
