"""Writes the golden files: what mgjax reads and computes today, for later versions to be held to.

    PYTHONPATH=. python tests/golden/make.py [NAME ...]

writes `tests/golden/files` anew, or only what is named, of the functions at the end of this file.
It was run on the code of commit f5c55cb, before the package was laid out anew. It is not run again to make a test
pass: what a later version writes proves nothing about the files that users have. Where a format, a number or a name
changes on purpose, only that part is written again, and CHANGELOG.md has the change.

Everything is deterministic. JAX is set up as in the tests (tests/conftest.py: eight devices, of which runs use one, and
programs that are not optimised). Of every call whose codes are kept, the smallest margin is measured: how far, in any
draw, the best code was ahead of the second (logits, or logits with Gumbel noise). None is below 1e-3, so that
rounding, which is below 1e-5 here, changes no code.
"""

from __future__ import annotations

# ruff: noqa: E402 - JAX is set up before it is imported
import contextlib
import dataclasses
import inspect
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import conftest  # noqa: F401 - sets JAX up
import jax
import numpy as np
from cases import RATE, WORDS, of_conditions, of_logits, of_melody, of_mini, of_recipe, of_text, streamed, tune
from doors import (
    CODES,
    EXPECTED,
    FILES,
    MODELS,
    command_line,
    first_batches,
    flattened,
    metrics,
    numbers,
    one_device,
    options,
    script,
    sources,
    summary,
    train,
    weights,
)

# Of the inside, only what makes models with random weights, and what draws.
from mgjax.checkpoint import Checkpoint
from mgjax.conditioner_config import (
    ClapAudioConfig,
    ClapConditionConfig,
    ClapConfig,
    ClapTextConfig,
    HubertConfig,
    LabelConfig,
    MelodyConfig,
    NumberConfig,
    StyleConfig,
    T5Config,
)

import mgjax
from mgjax import cli, formats, initialize
from mgjax.config import CodecConfig, Fused, LMConfig, ModelConfig
from mgjax.data import audio
from mgjax.lm import sample

LEAST_MARGIN = 1e-3

LM = LMConfig(16, num_layers=2, num_heads=2, ffn_dim=24, codebook_size=16, conditions=(Fused("text", 8),))
CODEC = CodecConfig(RATE, num_filters=2, ratios=(16, 10), latent_dim=8, num_lstm_layers=1, codebook_size=16,
                    bandwidths=(0.8,))  # fmt: skip
TEXT = T5Config(vocab_size=16, dim=8, head_dim=4, ffn_dim=12, num_layers=1, num_heads=2)
OF_TEXT = ModelConfig(LM, CODEC, TEXT, window_seconds=2.0, license="Apache-2.0")
OF_MELODY = dataclasses.replace(
    OF_TEXT,
    lm=dataclasses.replace(LM, num_codebooks=8, delays=(0, 0, 1, 1, 2, 2, 3, 3), conditions=(
        Fused("melody", 12, "prefix"), Fused("text", 8, "prefix"),
    )),
    channels=2,
    melody=MelodyConfig(sample_rate=RATE, num_frames=5),
)  # fmt: skip
CLAP = ClapConfig(
    ClapTextConfig(vocab_size=264, dim=8, ffn_dim=6, num_layers=1, num_heads=2, max_positions=80),
    ClapAudioConfig(RATE, 256, 5, 24, 50.0, 3500.0, 0.1, 96, 6, 4, 4, (1, 1), (2, 4), 2.0),
    dim=6,
)
OF_CONDITIONS = dataclasses.replace(
    OF_TEXT,
    lm=dataclasses.replace(LM, conditions=(
        Fused("melody", 12, "interpolate"), Fused("style", 8, "prefix"), Fused("text", 8), Fused("clap", 6),
        Fused("genre", 2, "sum"), Fused("bpm", 4, "sum"),
    )),
    melody=MelodyConfig(sample_rate=RATE, fft_size=4096, hop_length=1024, num_frames=8, null="nothing"),
    style=StyleConfig(
        HubertConfig(1000, (4, 4), (3, 2), (2, 2), dim=8, ffn_dim=6, num_layers=1, num_heads=2, position_kernel=4,
                     position_groups=2),
        dim=8, ffn_dim=6, num_layers=1, num_heads=2, num_codebooks=3, codebook_size=8, eval_codebooks=2, downsample=10,
        seconds=0.2,
    ),
    clap=ClapConditionConfig(CLAP, num_codebooks=2, codebook_size=8),
    labels=(LabelConfig("genre", ("waltz", "polka")),),
    numbers=(NumberConfig("bpm", 40.0, 200.0, 4),),
)  # fmt: skip

OFTEN = {"loop.steps": 4, "loop.log_every": 1, "loop.eval_every": 2, "loop.save_every": 2, "loop.show_every": 0}
LM_DATA = {
    "data.corpora": ("tokens",), "data.batch_size": 4, "data.segment_seconds": 0.5, "data.num_threads": 0,
    "data.prefetch": 1, "text.max_tokens": 16, "prompts": (),
}  # fmt: skip
LM_RUN = LM_DATA | OFTEN | {
    "codec": "text", "text_encoder": "text", "optim.learning_rate": 0.01, "optim.warmup_steps": 1,
    "lm": {
        "dim": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 24, "codebook_size": 16,
        "conditions": ({"name": "text", "dim": 8}, {"name": "melody", "dim": 12, "fuse": "interpolate"},
                       {"name": "genre", "dim": 2, "fuse": "sum"}, {"name": "bpm", "dim": 4, "fuse": "sum"}),
    },
    "melody": {"sample_rate": RATE, "fft_size": 4096, "hop_length": 1024, "num_frames": 8, "null": "nothing"},
    "labels": ({"name": "genre", "values": ("waltz", "polka")},),
    "numbers": ({"name": "bpm", "low": 40.0, "high": 200.0, "dim": 4},),
}  # fmt: skip
LORA_RUN = LM_DATA | OFTEN | {
    "init": "text", "dtype": "float32", "remat": "none", "optim.learning_rate": 0.1, "optim.warmup_steps": 0,
    "lora.rank": 2, "lora.alpha": 4.0,
}  # fmt: skip
CODEC_RUN = OFTEN | {
    "model.sample_rate": RATE, "model.num_filters": 2, "model.ratios": (16,), "model.latent_dim": 4,
    "model.num_lstm_layers": 1, "model.num_codebooks": 2, "model.codebook_size": 8, "model.bandwidths": (3.0,),
    "discriminator.stft_sizes": (64,), "discriminator.stft_filters": 2, "loss.mel_sizes": (64,), "loss.num_mels": (8,),
    "data.corpora": ("sound",), "data.segment_seconds": 0.1, "data.num_threads": 0, "data.prefetch": 1,
    "optim.learning_rate": 3e-3, "optim.eps": 1e-4,  # else Adam makes full steps of mere rounding
}  # fmt: skip


def make_models() -> None:
    """Tiny models with random weights, in every form."""
    shutil.rmtree(MODELS, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        text, clap = Path(folder), Path(folder) / "clap"
        clap.mkdir()
        write_tokenizers(text, clap)
        plain = Checkpoint(OF_TEXT, loud(OF_TEXT), text)
        formats.write(MODELS / "text", plain)
        formats.write(MODELS / "text-bfloat16", plain, compact="bfloat16")
        formats.write(MODELS / "text-int8", plain, compact="int8")
        formats.write(MODELS / "text-huggingface", plain, "huggingface")
        formats.write(MODELS / "text-audiocraft", plain, "audiocraft", text_encoder="t5-tiny")
        formats.write(MODELS / "melody-huggingface", Checkpoint(OF_MELODY, loud(OF_MELODY), text), "huggingface")
        formats.write(MODELS / "conditions", Checkpoint(OF_CONDITIONS, loud(OF_CONDITIONS), text, clap))


def loud(config: ModelConfig) -> dict[str, Any]:
    """Random weights of which those of the language model are large enough that its conditions matter."""
    variables = initialize.random_variables(config, place=lambda path, array: array)
    return variables | {"lm": jax.tree.map(lambda x: 2 * x if x.ndim > 1 else x, variables["lm"])}


def write_tokenizers(text: Path, clap: Path) -> None:
    vocab = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", -9.0], *([word, -1.0] for word in WORDS)]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": False},
    }  # fmt: skip
    (text / "tokenizer.json").write_text(json.dumps(tokenizer))
    # The bytes as RoBERTa writes them: those that can be printed as they are, the others from 256 on.
    shown = [chr(b) for b in range(256) if 33 <= b < 127 or 161 <= b < 173 or b > 173]
    alphabet = sorted(shown + [chr(256 + i) for i in range(256 - len(shown))])
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet]
    (clap / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (clap / "merges.txt").write_text("#version: 0.2\n")


def make_corpora() -> None:
    """A corpus of sound and one of its codes, of seven short pieces, by the commands that a user types."""
    with somewhere():
        os.mkdir("music")
        for i, word in enumerate(["waltz", "polka", "waltz", "polka", "waltz", None, None]):
            audio.write(f"music/{i}.wav", tune(0.8 + 0.1 * i, seed=i)[:, None], RATE)
            known = {"description": f"slow {word}", "genre": word, "bpm": 60 + 20 * i} if word else {}
            Path(f"music/{i}.json").write_text(json.dumps(known))
        shutil.copytree(MODELS / "text", "text")
        build = "build music sound --sample-rate 8000 --min-seconds 0.5 --valid 0.3 --shards 1"
        for command in (build, "tokenize sound tokens --codec text --tokenizer text --melody"):
            assert cli.main(["corpus", *command.split()]) == 0
        pack(FILES / "corpora.tar.gz", "sound", "tokens")


def make_batches() -> None:
    """What is read from them."""
    model = mgjax.load(MODELS / "conditions")
    with somewhere():
        sources(Path())
        expect(
            batches={
                f"{corpus} {name}": {key: summary(array) for key, array in batch.items()}
                for corpus in ("sound", "tokens")
                for name, batch in first_batches(Path(corpus), model)
            }
        )


def make_runs() -> None:
    """Runs of four steps, kept as they were after the second; and what the other two made."""
    for kind, settings in (("lm", LM_RUN), ("codec", CODEC_RUN)):
        with somewhere(), one_device():
            sources(Path())
            train(kind, "debug", settings, kind)
            found = {"metrics": metrics(Path(kind), 2), "weights": weights(Path(kind, "model"))}
            for name in ("model", "best", "tensorboard", "checkpoints/4"):
                shutil.rmtree(Path(kind, name))
            lines = Path(kind, "metrics.jsonl").read_text().splitlines(keepends=True)
            Path(kind, "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 2))
            pack(FILES / f"run-{kind}.tar.gz", kind)
        expect(**{f"run {kind}": {"settings": settings, **found}})


def make_adapter() -> None:
    """An adapter of low rank for the text model, in the layout of the library peft."""
    shutil.rmtree(FILES / "adapter", ignore_errors=True)
    with somewhere(), one_device():
        sources(Path())
        train("lm", "lora", LORA_RUN, "lora")
        shutil.copytree("lora/model", FILES / "adapter")


def make_codes() -> None:
    """What the tiny models play, their hashes, and some of their logits."""
    margins, hashes, codes = {}, {}, {}

    def played(name: str, model: Any, calls: dict[str, dict[str, Any]]) -> None:
        hashes[name] = [model.hash, model.codec.hash]
        for case, call in calls.items():
            codes[f"{name}: {case}"], margins[f"{name}: {case}"] = measured(model, call)

    for form in ("text", "text-bfloat16", "text-int8", "text-huggingface"):
        played(form, mgjax.load(MODELS / form), of_text())
    encoder = str(MODELS / "text-huggingface")
    played("text-audiocraft", mgjax.load(MODELS / "text-audiocraft", text_encoder=encoder), of_text())
    played("text with adapter", mgjax.load(MODELS / "text", adapter=FILES / "adapter"), of_text())
    played("melody-huggingface", mgjax.load(MODELS / "melody-huggingface"), of_melody())
    model = mgjax.load(MODELS / "conditions")
    played("conditions", model, of_conditions())

    rows = codes["conditions: rows"]
    assert len({row.tobytes() for row in rows}) == len(rows), "something steers nothing"
    for form in ("text-huggingface", "text-audiocraft"):
        assert np.array_equal(codes[f"{form}: greedy"], codes["text: greedy"]), form
        assert hashes[form][1] == hashes["text"][1], form
    assert not np.array_equal(codes["text with adapter: greedy"], codes["text: greedy"])

    text = mgjax.load(MODELS / "text")
    codes["text: stream"], margins["text: stream"] = measured(text, streamed())
    codes["text: encoded"] = text.codec.encode(tune(0.5))
    expect(
        hashes=hashes,
        margins=margins,
        stream={
            "pieces": [piece.shape[1] for piece in text.stream_codes(**streamed())],
            "sound": numbers(np.concatenate(list(text.stream(**streamed())), axis=1)),
        },
        decoded=numbers(text.codec.decode(codes["text: encoded"])),
        logits={
            "text": numbers(text.logits(codes["text: greedy"], "slow waltz")),
            "conditions": numbers(model.logits(rows[:1], "slow waltz", **of_logits())),
        },
    )
    keep_codes(codes)


def make_mini() -> None:
    """What the bundled model plays."""
    model = mgjax.load("mini")
    codes, margins = measured(model, of_mini())
    expect(mini={"hash": model.hash, "codec": model.codec.hash, "margins": margins})
    keep_codes({"mini": codes})


def make_cli() -> None:
    """What the commands write: a recipe and its sound, a file of codes, and what `info` says."""
    with somewhere():
        shutil.copytree(MODELS / "text", "text")
        command = ["generate", "slow waltz", "--then", "0.3", "loud drums", "--blend", "0.1", "--negative", "piano"]
        command += ["--model", "text", "--seconds", "0.6", "--seed", "3", "--top-k", "9", "--guidance", "2"]
        command += ["--temperature", "1,1,0.9,0.8"]
        assert cli.main([*command, "--out", "songs", "--cache", "off"]) == 0
        recipe = Path("songs/slow-waltz-3.json").read_text().replace(str(Path("text").resolve()), "{model}")
        (FILES / "recipe.json").write_text(recipe)
        shutil.copy("songs/slow-waltz-3.wav", FILES / "recipe.wav")
        codes, margins = measured(mgjax.load("text"), of_recipe(json.loads(recipe)))
        keep_codes({"recipe": codes})
        assert cli.main(["encode", "songs/slow-waltz-3.wav", "codes.npz", "--model", "text", "--cache", "off"]) == 0
        shutil.copy("codes.npz", FILES / "encoded.npz")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert cli.main(["info", "debug", "--cache", "off"]) == 0
        expect(recipe={"command": command, "margins": margins}, info=said.getvalue().splitlines())


def make_names() -> None:
    """What users type: public names, keywords, options of the command line, settings of runs."""
    keywords = list(inspect.signature(mgjax.MusicGen.stream_codes).parameters)[1:]
    methods = {name: keywords for name in ("generate", "stream", "generate_codes", "stream_codes")}
    for owner, names in ((mgjax.MusicGen, ("logits", "save")), (mgjax.Codec, ("encode", "decode"))):
        methods |= {name: list(inspect.signature(getattr(owner, name)).parameters)[1:] for name in names}
    attributes = {
        owner.__name__: sorted(name for name, _ in inspect.getmembers(owner, lambda x: isinstance(x, property)))
        for owner in (mgjax.MusicGen, mgjax.Codec)
    }
    expect(
        names={
            "mgjax": list(mgjax.__all__),
            "methods": methods,
            "functions": {
                name: list(inspect.signature(getattr(mgjax, name)).parameters) for name in ("load", "load_codec")
            },
            "attributes": attributes,
            "Sampling": {field.name: field.default for field in dataclasses.fields(mgjax.Sampling)},
            "command line": options(command_line()),
            "settings": {
                kind: {
                    name: flattened(script(f"configs/{kind}.py").get_config(name))
                    for name in script(f"configs/{kind}.py").VARIANTS
                }
                for kind in ("codec", "lm")
            },
        }
    )


def measured(model: Any, call: dict[str, Any]) -> tuple[np.ndarray, list[float]]:
    """The codes of a call, and the smallest margin of each row, of draws too that a pattern has no use for."""
    del _margins[:]
    codes = model.generate_codes(**call)
    jax.effects_barrier()
    margins = np.min(_margins, axis=0).min(axis=1).tolist()
    print(f"margins of {len(_margins)} draws: {', '.join(f'{margin:.1g}' for margin in margins)}", flush=True)
    assert min(margins) > LEAST_MARGIN or "ANY_MARGIN" in os.environ, "choose another seed, or other texts"
    return codes, margins


_margins: list[np.ndarray] = []  # [b, k] of each step


class _Measuring:
    """jax.numpy, but for the choice of the best code, which is measured."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jax.numpy, name)

    def argmax(self, noisy: jax.Array, axis: int) -> jax.Array:
        best = jax.lax.top_k(noisy, 2)[0]
        jax.debug.callback(_margins.append, best[..., 0] - best[..., 1])
        return jax.numpy.argmax(noisy, axis=axis)


@contextlib.contextmanager
def somewhere() -> Iterator[None]:
    """An empty folder to work in."""
    with tempfile.TemporaryDirectory(prefix="golden-") as folder, contextlib.chdir(folder):
        yield


def pack(path: Path, *folders: str) -> None:
    """Folders as an archive, without what tells when and by whom it was written."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(path, "w:gz", compresslevel=9) as archive:
        for folder in folders:
            archive.add(folder, filter=plain)


def expect(**values: Any) -> None:
    """Adds values to expected.json."""
    known = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    text = json.dumps(known | values, indent=1, sort_keys=True)
    EXPECTED.write_text(text + "\n")


def keep_codes(codes: dict[str, np.ndarray]) -> None:
    """Adds codes to codes.npz."""
    known = dict(np.load(CODES)) if CODES.exists() else {}
    np.savez_compressed(CODES, **known | {name: array.astype(np.int16) for name, array in codes.items()})


PARTS = {
    "models": make_models,
    "corpora": make_corpora,
    "batches": make_batches,
    "adapter": make_adapter,
    "codes": make_codes,
    "mini": make_mini,
    "cli": make_cli,
    "runs": make_runs,
    "names": make_names,
}

if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    FILES.mkdir(exist_ok=True)
    sample.jnp = _Measuring()
    for part in sys.argv[1:] or PARTS:
        print(part, flush=True)
        PARTS[part]()
