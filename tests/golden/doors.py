"""The ways into mgjax that the golden files are read by: public names, and what has no public name yet, all of it here.

Where a module moves, only this file changes. The files beside it stay as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.util
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mgjax import cli
from mgjax.data.conditions import BatchConditions
from mgjax.data.corpus import Corpus
from mgjax.data.pipeline import DataConfig, batches, validation_batches
from mgjax.data.prompts import TextConfig
from mgjax.train import codec, lm
from mgjax.train.overrides import from_config_dict

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = HERE / "files"
MODELS = FILES / "models"
EXPECTED = FILES / "expected.json"
CODES = FILES / "codes.npz"


def script(path: str) -> Any:
    """The module at `path`, a file of `launch/` or `configs/`."""
    if path in sys.modules:
        return sys.modules[path]
    spec = importlib.util.spec_from_file_location(path, ROOT / path)
    sys.modules[path] = importlib.util.module_from_spec(spec)  # absl looks there for what defines flags
    spec.loader.exec_module(sys.modules[path])
    return sys.modules[path]


def train(kind: str, name: str, settings: dict[str, Any], workdir: str) -> Any:
    """Does what `mgjax train KIND --config=configs/KIND.py:NAME --workdir=...` with these settings does."""
    config = script(f"configs/{kind}.py").get_config(name)
    with config.unlocked(), config.ignore_type():
        for path, value in settings.items():
            *parents, last = path.split(".")
            part = functools.reduce(lambda inner, parent: inner[parent], parents, config)
            part[last] = ConfigDict(value) if isinstance(value, dict) else _settled(value)
    cls, run = {"codec": (codec.CodecRun, codec.run), "lm": (lm.LMRun, lm.run)}[kind]
    return run(from_config_dict(cls, config.lock()), workdir)


def _settled(value: Any) -> Any:
    return tuple(map(_settled, value)) if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """A machine with one device, for which programs are compiled in half the time."""
    devices = jax.devices
    jax.devices = lambda *args: devices(*args)[:1]
    try:
        yield
    finally:
        jax.devices = devices


def unpack(name: str, folder: Path) -> None:
    """Puts into `folder` what NAME.tar.gz holds: of "corpora" `sound` and `tokens`, of "run-lm" `lm`, and so on."""
    with tarfile.open(FILES / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")


def sources(folder: Path) -> None:
    """Puts what the runs read into `folder`, under the names that they know: corpora, and a model."""
    unpack("corpora", folder)
    (folder / "text").symlink_to(MODELS / "text")


def first_batches(corpus: Path, model: Any) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Batches of a golden corpus by name: the first of its training split, and all of its validation split."""
    config = DataConfig(batch_size=4, segment_seconds=0.5, num_threads=0, prefetch=1)
    what = BatchConditions(
        text=TextConfig(max_tokens=16),
        tokenize=model.tokenizer.encode,
        melody=model.config.melody if corpus.name == "tokens" else None,
        style=0.2,
        labels=(*model.config.labels, *model.config.numbers),
    )
    split = {name: Corpus.open(corpus, name) for name in ("train", "valid")}
    training = batches(split["train"], config, seed=3, conditions=what)
    for number in range(3):
        yield f"train {number}", next(training)
    training.close()
    for number, batch in enumerate(validation_batches(split["valid"], config, conditions=what)):
        yield f"valid {number}", batch


def digest(array: np.ndarray) -> str:
    """Twelve hexadecimal digits of an array's type, shape and bytes."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()[:12]


def summary(array: np.ndarray) -> dict[str, Any]:
    """What tells whole numbers apart exactly, and a few numbers to look at."""
    return {"digest": digest(array), "shape": list(array.shape), "first": array.ravel()[:3].astype(float).tolist()}


def numbers(array: np.ndarray) -> list[float]:
    """Mean, root mean square, and three entries: what is compared of arrays that are only equal up to rounding."""
    flat = np.asarray(array, np.float64).ravel()
    return [flat.mean(), np.sqrt(np.mean(flat**2)), *flat[[0, len(flat) // 3, -1]]]


def weights(directory: Path) -> dict[str, list[float]]:
    """`numbers` of every array of a model's model.safetensors."""
    blob = (directory / "model.safetensors").read_bytes()
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in sorted(header.items()):
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        assert entry["dtype"] == "F32", name
        found[name] = numbers(np.frombuffer(blob[start:end], "<f4"))
    return found


def metrics(workdir: Path, after: int) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of steps beyond `after`, but for the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("step", "split", "values")} for line in lines if line["step"] > after]


def command_line() -> argparse.ArgumentParser:
    """The parser of `mgjax`, caught where it is about to be used."""

    class Caught(Exception):
        pass

    def catch(parser, *_):
        raise Caught(parser)

    parse, argparse.ArgumentParser.parse_known_args = argparse.ArgumentParser.parse_known_args, catch
    try:
        cli.main(["--version"])
    except Caught as caught:
        return caught.args[0]
    finally:
        argparse.ArgumentParser.parse_known_args = parse


def options(parser: argparse.ArgumentParser, name: str = "mgjax") -> dict[str, list[dict[str, Any]]]:
    """Of every command of `parser`, what it can be given."""
    found: dict[str, list[dict[str, Any]]] = {name: []}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, below in action.choices.items():
                found |= options(below, f"{name} {command}")
            continue
        default = parser.get_default(action.dest)
        found[name].append(
            {
                "names": list(action.option_strings),
                "nargs": action.nargs,
                "choices": None if action.choices is None else list(action.choices),
                "required": action.required,
                "default": None if default in (None, False, argparse.SUPPRESS) or default == [] else str(default),
            }
        )
    return found


def flattened(config: Any, path: str = "") -> dict[str, Any]:
    """The settings of a ConfigDict, or of dicts in dicts, by their paths, as JSON holds them."""
    if not hasattr(config, "items"):
        return {path: json.loads(json.dumps(config, default=lambda value: vars(value)))}
    found = {}
    for key, value in config.items():
        found |= flattened(value, f"{path}.{key}" if path else key)
    return found
