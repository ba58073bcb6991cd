"""The clips that are measured: held-out pieces, what a model makes of their facts, and how numbers are reported."""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mgjax import synthetic
from mgjax.audio import files as audio_files

SEED = 1000  # of the pieces that are held out; models are trained on seeds below it
BATCH = 8  # clips that are generated at a time


@dataclass(frozen=True)
class Clip:
    """A stretch of a synthetic piece.

    Attributes:
      sound: Float32 [n], mono.
      metadata: What is true of the piece, in the fields of audiocraft's MusicInfo; `instrument` begins with the leader.
      metre: "4/4", "3/4" or "6/8".
      is_led: Whether a melody instrument leads it.
    """

    sound: np.ndarray
    metadata: dict[str, Any]
    metre: str
    is_led: bool

    @property
    def bpm(self) -> int:
        return self.metadata["bpm"]

    @property
    def key(self) -> str:
        return self.metadata["key"]

    @property
    def lead(self) -> str:
        return self.metadata["instrument"].split(", ")[0]


def held_out(count: int, seconds: float, sample_rate: int, seed: int = SEED, first: int = 0) -> list[Clip]:
    """A clip of `seconds` from each of `count` pieces of `seed`, at a place drawn by chance.

    Args:
      count: How many.
      seconds: Length; shorter pieces end in silence.
      sample_rate: In hertz.
      seed: Of the pieces.
      first: Number of the first piece.
    """
    tasks = [(seed, index, seconds, sample_rate) for index in range(first, first + count)]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_clip, tasks, chunksize=4))


def _clip(task: tuple[int, int, float, int]) -> Clip:
    seed, index, seconds, sample_rate = task
    piece = synthetic.compose(seed, index)
    sound = synthetic.render(piece, sample_rate)[:, 0]
    length = round(seconds * sample_rate)
    start = int(np.random.default_rng([seed, index, 1]).integers(max(1, len(sound) - length + 1)))
    part = sound[start : start + length]
    is_led = any(track.part.role == "melody" for track in piece.score.tracks)
    return Clip(np.pad(part, (0, length - len(part))), piece.metadata, piece.score.style.metre, is_led)


def made(model: Any, prompts: Sequence[str], seconds: float, seed: int, out: Path, **about: Any) -> list[np.ndarray]:
    """What the model makes for each prompt, mono float32 [n], as the API gives it; kept in the folder `out`.

    Clips that are there already from the same call are read and not made again, so that what was cut off goes on.

    Args:
      model: What `mgjax.load` gives.
      prompts: One a clip.
      seconds: Length of each.
      seed: Of the first clip; the next one has the next.
      out: A folder: 0000.wav (32 bit floating point), ..., and prompts.json.
      **about: What else is to be handed to `generate`, and is written down.

    Raises:
      ValueError: The folder holds clips of another call.
    """
    out.mkdir(parents=True, exist_ok=True)
    asked = {"model": model.hash, "seconds": seconds, "seed": seed, "options": repr(about), "prompts": list(prompts)}
    note = out / "prompts.json"
    if note.exists() and json.loads(note.read_text()) != asked:
        raise ValueError(f"{out} holds clips of another model or other prompts; choose another folder or empty it")
    note.write_text(json.dumps(asked, indent=1))
    for start in range(0, len(prompts), BATCH):
        numbers = range(start, min(start + BATCH, len(prompts)))
        if all((out / f"{i:04d}.wav").exists() for i in numbers):
            continue
        # Always a whole batch: one program serves all.
        texts = [prompts[min(i, len(prompts) - 1)] for i in range(start, start + BATCH)]
        sounds = model.generate(texts, seconds=seconds, seed=seed + start, **about)
        for i, sound in zip(numbers, sounds, strict=False):
            soundfile.write(out / f"{i:04d}.wav", sound, model.sample_rate, subtype="FLOAT")
        print(f"  made {numbers[-1] + 1} of {len(prompts)}", flush=True)
    return [audio_files.read(out / f"{i:04d}.wav")[0].mean(axis=1) for i in range(len(prompts))]


def read_folder(folder: Path, count: int | None = None) -> tuple[list[np.ndarray], int]:
    """The first `count` sound files of a folder (None: all), mono float32 [n], and their sample rate in hertz.

    Raises:
      ValueError: There are none, or their rates differ.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix in audio_files.FORMATS)[:count]
    if not paths:
        raise ValueError(f"there is no sound file in {folder}; benchmarks/adherence.py --out {folder} makes some")
    sounds, rates = zip(*(audio_files.read(path) for path in paths), strict=True)
    if len(set(rates)) > 1:
        raise ValueError(f"the files in {folder} have several sample rates: {sorted(set(rates))}")
    return [sound.mean(axis=1) for sound in sounds], rates[0]


def bootstrap(
    measure: Callable[..., float], *samples: np.ndarray, seed: int, repeats: int = 1000, paired: bool = True
) -> dict[str, float]:
    """The measure of the samples, and twice its standard error by the bootstrap over their rows.

    Args:
      measure: Of as many arrays as there are samples.
      *samples: Arrays.
      seed: Of the bootstrap.
      repeats: Of it.
      paired: Whether row i of all samples is of one and the same clip, and drawn together.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(repeats):
        rows = [rng.integers(len(sample), size=len(sample)) for sample in samples]
        values.append(measure(*(sample[rows[0 if paired else i]] for i, sample in enumerate(samples))))
    low, high = np.quantile(values, (0.0228, 0.9772))  # two standard errors, where a few repeats may be wild
    return {"value": float(measure(*samples)), "two_se": float(high - low) / 2}


def mean(values: np.ndarray) -> dict[str, float]:
    """The mean and twice its standard error."""
    values = np.asarray(values, np.float64)
    spread = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return {"value": float(values.mean()), "two_se": float(2 * spread)}


def text(number: dict[str, float], form: str = ".3f") -> str:
    """A number and its interval, as in "0.812 ± 0.020"."""
    return f"{number['value']:{form}} ± {number['two_se']:{form}}"


def parser(doc: str, music_seed: int = SEED) -> argparse.ArgumentParser:
    """A parser of the command line with what all measurements take."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--music-seed", type=int, default=music_seed, help=f"of the held-out pieces ({music_seed})")
    found.add_argument("--json", type=Path, help="keep the numbers in this file")
    return found


def add_sampling(found: argparse.ArgumentParser) -> None:
    """Options that change how codes are drawn, which `sampling` reads."""
    found.add_argument("--guidance", type=float, help="as the model has it")
    found.add_argument("--temperature", type=float, help="as the model has it")
    found.add_argument("--top-k", type=int, help="as the model has it")


def sampling(model: Any, args: argparse.Namespace) -> Any:
    """How the model draws codes, but for what `add_sampling` was asked for."""
    asked = {name: getattr(args, name) for name in ("guidance", "temperature", "top_k")}
    return dataclasses.replace(model.config.sampling, **{k: v for k, v in asked.items() if v is not None})


def keep(numbers: dict[str, Any], args: argparse.Namespace) -> None:
    """Writes the numbers and how they were asked for, where --json says so."""
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        args.json.write_text(json.dumps({"arguments": asked, **numbers}, indent=1) + "\n")
