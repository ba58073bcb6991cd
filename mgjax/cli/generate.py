"""`mgjax generate`: music from prompts, each piece with the recipe to generate it again."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import mgjax
from mgjax.audio import files as audio_files
from mgjax.audio import loudness
from mgjax.cli import conditions, terminal
from mgjax.cli.options import add_model_options, command, count, file_path, option, positive
from mgjax.cli.recipe import PromptLine, Recipe, absolute_source, read_lines, read_recipe, sha256, slug
from mgjax.config import model as model_config
from mgjax.config import serialization
from mgjax.inputs import files
from mgjax.storage.paths import Path, absolute

_EXAMPLES = """\
examples:
  mgjax generate "a slow waltz on accordion" --out waltz.wav
  mgjax generate "80s synth pop" "calm piano, rain" --seconds 30 --out songs
  mgjax generate --prompts ideas.txt --format flac --out songs
  mgjax generate "the same, with drums" --continue demo.wav --seconds 20
  mgjax generate "calm piano" --then 10 "with drums" --blend 2 --seconds 20
  mgjax generate "a brass band" --melody tune.wav --model facebook/musicgen-melody
  mgjax generate --again songs/calm-piano-rain-1.json --out copy.wav

Beside each sound file lies a .json of the same name that says how it was made; --again makes it once more.
"""

Batch = list[tuple[Recipe, Path]]  # recipes, and the files of their sounds

_SAMPLING = ("temperature", "top_k", "top_p", "guidance", "text_guidance")


def add_commands(commands: Any) -> None:
    """Adds `generate` to the commands of argparse."""
    suppressed = argparse.SUPPRESS  # so that --again knows which options are used with it
    description = "Makes a sound file for each prompt."
    parser = command(
        commands, "generate", run, "make music from words", description, _EXAMPLES, argument_default=suppressed
    )
    parser.set_defaults(prompt=[], out=pathlib.Path("."), batch_size=4, force=False, offline=False, cache=None)

    what = parser.add_argument_group("what to play")
    option(what, "prompt PROMPT", 'style, instruments, mood, tempo; "" for no text', nargs="*")
    prompts = "more prompts, one a line; or a .jsonl file of objects with prompt and, if wanted, seconds, seed, name"
    option(what, "--prompts FILE", prompts, file_path)
    option(what, "--again FILE.json", "make a piece again, as the file says", file_path)
    option(what, "--seconds S", "length of each piece (8)", positive)
    option(what, "--seed N", "another number, another piece; the second prompt gets N + 1 ... (0)", int)
    option(what, "--continue FILE", "begin with this sound and go on from it", dest="continued")
    trim = "begin with the end of that sound, where it is longer than the model sees at once"
    option(what, "--trim-prompt", trim)

    conditions.add_options(parser)

    where = parser.add_argument_group("where to put it")
    option(where, "--out FILE|DIR", "a file, or a folder for several (this folder)", file_path)
    option(where, "--format", "kind of file (wav)", choices=[suffix[1:] for suffix in audio_files.FORMATS])
    option(where, "--force", "replace files that are there already")
    option(where, "--loudness LUFS|off", "make all pieces equally loud (-14)", lufs)

    how = parser.add_argument_group("how to play it")
    option(
        how,
        "--model NAME|DIR",
        '"mini", which comes with mgjax; "debug", a toy that makes noise; a name on the Hugging Face Hub, such as '
        "facebook/musicgen-small; or a folder (mini)",
    )
    add_sampling(how)

    machine = parser.add_argument_group("the machine")
    option(machine, "--batch-size N", "pieces to play at a time (4)", count)
    add_model_sources(machine)
    add_model_options(machine)


def add_sampling(group: argparse._ArgumentGroup) -> None:
    """Adds the options of sampling and guidance."""
    temperature = "above 1 wilder, below 1 tamer, 0 greedy (1); with commas, one for each codebook"
    option(group, "--temperature T", temperature, conditions.numbers)
    guidance = "guidance scale: how closely to follow the prompt and other conditions, 1 for off (3); 0:3,20:5 "
    option(group, "--guidance G", guidance + "rises from 3 to 5 in 20 seconds", conditions.guidance_scales)
    option(group, "--text-guidance G", "guidance scale of the text beside melody or style (double guidance)", float)
    option(group, "--top-k K", "sample from the K likeliest codes, 0 for all (250)", int)
    nucleus = "instead: nucleus sampling, from the likeliest codes that together have probability P (0: off)"
    option(group, "--top-p P", nucleus, float)
    option(group, "--window S", "what the model sees at once (30)", positive)
    option(group, "--stride S", "by which each window is later than the one before, in long pieces (18)", positive)


def add_model_sources(group: argparse._ArgumentGroup) -> None:
    """Adds the options of loading a model: its dtype, its adapter and its encoders."""
    option(group, "--dtype", "precision (what suits the device)", choices=["float32", "bfloat16", "float16"])
    option(
        group,
        "--weights",
        "precision that weights are kept in (that of --dtype)",
        choices=["float32", "bfloat16", "int8"],
    )
    option(group, "--adapter DIR", "an adapter (LoRA) of the model")
    option(group, "--text-encoder NAME|DIR", "the T5 encoder of a model that comes without one")
    option(group, "--style-encoder NAME|DIR", "the MERT of a style model that comes without one")


class Piece(NamedTuple):
    """A piece to generate: its line in a file of prompts ("" for none), the name of its file, and its recipe."""

    where: str
    name: str
    recipe: Recipe


def run(args: argparse.Namespace) -> None:
    """Generates the pieces of the command line `args`, and prints the names of the files."""
    # Mistakes are found first, before minutes are spent on loading and generating.
    sampling = sampling_options(args)
    pieces = _pieces_again(args) if "again" in args else _pieces(args)
    paths = _outputs(args, pieces)
    first = pieces[0].recipe
    audio_prompt = _AudioPrompt.read(first.continued, first) if first.continued else None

    terminal.apply_model_options(args)
    model = load_model(first)
    recipes = [completed(piece.recipe, sampling, model) for piece in pieces]
    if audio_prompt:
        audio_prompt = audio_prompt.fitted(first, model.config.window_seconds)
    for piece, recipe in zip(pieces, recipes, strict=True):
        with terminal.errors_at(piece.where):
            check(recipe, model, audio_prompt)
    if first.loudness is not None:
        loudness.prepare()
    with terminal.progress("generate", sum(recipe.seconds for recipe in recipes)) as update:
        done, rate = 0.0, model.sample_rate
        for batch in _batches(list(zip(recipes, paths, strict=True)), args.batch_size):
            for audio, (recipe, path) in zip(_generate(model, batch, audio_prompt, update, done), batch, strict=True):
                audio_files.write(path, loudness.normalized(audio, rate, recipe.loudness), rate)
                files.write_text(path.with_suffix(".json"), serialization.to_json(recipe))
                done += recipe.seconds
    for path in paths:
        print(path)


def load_model(recipe: Recipe, mesh: Any = None) -> Any:
    """The model of a recipe, on the devices of `mesh`."""
    parts = {"text_encoder": recipe.text_encoder, "style_encoder": recipe.style_encoder, "adapter": recipe.adapter}
    return mgjax.load(recipe.model, dtype=recipe.dtype, weights=recipe.weights, mesh=mesh, **parts)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_sampling` on the command line, checked."""
    sampling = {name: getattr(args, name) for name in _SAMPLING if name in args}
    model_config.Sampling(**sampling)
    return sampling


def _pieces(args: argparse.Namespace) -> list[Piece]:
    """The pieces, from the command line and the file of prompts."""
    lines = [("", PromptLine(prompt)) for prompt in args.prompt]
    if "prompts" in args:
        lines += read_lines(args.prompts)
    if not lines:
        raise ValueError('say what to play, as in: mgjax generate "a slow waltz on accordion"')
    return pieces_of(args, lines, _format(args, "wav"))


def pieces_of(args: argparse.Namespace, lines: Sequence[tuple[str, PromptLine]], form: str) -> list[Piece]:
    """The piece of each line of `read_lines`, as far as it is known without the model."""
    conditions.check_options(args, [line for _, line in lines])
    names = ("trim_prompt", "window", "stride", "dtype", "weights", "loudness")
    common = {name: getattr(args, name) for name in names if name in args}
    parts = ("adapter", "text_encoder", "style_encoder")
    common |= {name: absolute_source(getattr(args, name)) for name in parts if getattr(args, name, None)}
    if "continued" in args:
        common["continued"] = absolute(args.continued)
        common["continued_sha256"] = sha256(args.continued)
    pieces, first = [], getattr(args, "seed", 0)
    for i, (where, line) in enumerate(lines):
        with terminal.errors_at(where):
            seed = (first + i) % 2**32 if 0 <= first < 2**32 else first  # as for the rows of `mgjax.generate`
            recipe = Recipe(
                prompt=line.prompt,
                seconds=getattr(args, "seconds", 8.0) if line.seconds is None else line.seconds,
                seed=seed if line.seed is None else line.seed,
                model=absolute_source(getattr(args, "model", "mini")),
                format=form,
                **common,
                **conditions.recipe_fields(args, line, i, len(lines)),
            )
            pieces.append(Piece(where, line.name or f"{slug(line.prompt)}-{recipe.seed}", recipe))
    return pieces


def _pieces_again(args: argparse.Namespace) -> list[Piece]:
    """The piece to generate again."""
    allowed = {"run", "again", "out", "format", "force", "batch_size", "offline", "cache", "prompt"}
    extra = sorted(set(vars(args)) - allowed) + ["a prompt"] * bool(args.prompt)
    if extra:
        raise ValueError(f"--again takes everything from {args.again}; leave out {', '.join(extra)}")
    recipe = read_recipe(args.again)
    for name in ("melody", "style", "continued"):
        path, expected = getattr(recipe, name), getattr(recipe, f"{name}_sha256")
        if path and expected and expected != sha256(path):
            warnings.warn(f"{path} has changed since; the piece will differ", stacklevel=2)
    return [Piece("", args.again.stem, dataclasses.replace(recipe, format=_format(args, recipe.format)))]


def _format(args: argparse.Namespace, default: str) -> str:
    """The format of --out or of --format; raises ValueError if they contradict each other."""
    form = getattr(args, "format", None)
    if not _names_a_file(args.out):
        return form or default
    audio_files.writable_format(args.out)  # raises for an unknown suffix
    named = args.out.suffix[1:].lower()
    if form and form != named:
        raise ValueError(f"--out {args.out} and --format {form} contradict each other")
    return named


def _names_a_file(out: Path) -> bool:
    """Whether --out ends like the name of a file, not of a folder."""
    return out.suffix[1:].isalnum() and not out.suffix[1:].isdigit() and not out.is_dir()


def _outputs(args: argparse.Namespace, pieces: list[Piece]) -> list[Path]:
    """The output file of each piece, claimed and checked to be writable."""
    if _names_a_file(args.out):
        if len(pieces) > 1:
            raise ValueError(f"--out {args.out} is one file, but there are {len(pieces)} prompts: name a folder")
        paths = [args.out]
    else:
        paths = [args.out / f"{piece.name}.{piece.recipe.format}" for piece in pieces]
    twice = {str(path) for path in paths if paths.count(path) > 1}
    if twice:
        raise ValueError(f"several pieces would be called {', '.join(sorted(twice))}: give them other names or seeds")
    for path in paths:
        audio_files.writable_format(path)
    terminal.claim([path for out in paths for path in (out, out.with_suffix(".json"))], args.force)
    return paths


def completed(recipe: Recipe, sampling: dict[str, Any], model: Any) -> Recipe:
    """`recipe` with the fields that the loaded model decides."""
    import jax

    if recipe.model_hash not in (None, model.hash):
        changed = (
            f"{recipe.model} has other weights now ({model.hash}, then {recipe.model_hash}); the piece will differ"
        )
        warnings.warn(changed, stacklevel=2)
    device = jax.devices()[0]
    return dataclasses.replace(
        recipe,
        sampling=recipe.sampling or dataclasses.replace(model.config.sampling, **sampling),
        dtype=model.dtype,
        model_hash=model.hash,
        mgjax=mgjax.__version__,
        jax=jax.__version__,
        device=f"{device.platform} ({device.device_kind})",
    )


def check(recipe: Recipe, model: Any, audio_prompt: _AudioPrompt | None = None, *, reads_sounds: bool = True) -> None:
    """Raises an error if the model cannot generate the recipe, before the first piece is generated.

    Of the audio prompt the length is checked. Nothing is separated, and where many sounds are named, none is read.
    """
    from mgjax.generation import arguments as generation_arguments  # which needs JAX

    for name in ("melody", "style"):
        if getattr(recipe, name) and getattr(model.config, name) is None:
            raise ValueError(f"there is a {name}, and {recipe.model} was not trained with any")
    skipped: dict[str, Any] = {"separate": False} if reads_sounds else {"melody": None, "style": None}
    options = arguments([dataclasses.replace(recipe, **skipped)], model)
    request = generation_arguments.request(model.config, model.codec, **options)
    if audio_prompt:
        frames = math.ceil(round(audio_prompt.seconds * model.frame_rate, 6))
        generation_arguments.check_prompt_length(frames, request.num_frames, request.window_frames, model.frame_rate)


def _batches(pieces: Batch, size: int) -> Iterator[Batch]:
    """`pieces` in order, at most `size` together, all of one length."""
    for _, group in itertools.groupby(pieces, lambda piece: piece[0].seconds):
        same_length = list(group)
        for start in range(0, len(same_length), size):
            yield same_length[start : start + size]


def _generate(
    model: Any, batch: Batch, audio_prompt: _AudioPrompt | None, update: Callable[[float], None], done: float
) -> Any:
    """The sound of a batch, float32 `[b, n, c]`; `done` seconds are finished already."""
    recipes = [recipe for recipe, _ in batch]
    seconds = sum(recipe.seconds for recipe in recipes)
    return model.generate(
        **arguments(recipes, model),
        prompt=audio_prompt and audio_prompt.sound,
        prompt_sample_rate=audio_prompt and audio_prompt.sample_rate,
        progress=lambda frames, total: update(done + seconds * frames / total),
    )


def arguments(recipes: Sequence[Recipe], model: Any) -> dict[str, Any]:
    """The arguments of `model.generate` for recipes of one length."""
    schedules = [[(0.0, recipe.prompt), *recipe.then] if recipe.then else recipe.prompt for recipe in recipes]
    common = {name: getattr(recipes[0], name) for name in ("seconds", "sampling", "window", "stride")}
    seeds = [recipe.seed for recipe in recipes]
    return {"prompts": schedules, "seed": seeds, **common, **conditions.arguments(recipes, model)}


@dataclasses.dataclass(frozen=True)
class _AudioPrompt:
    """The audio prompt (--continue)."""

    sound: audio_files.Audio
    sample_rate: int

    @classmethod
    def read(cls, path: str, recipe: Recipe) -> _AudioPrompt:
        audio_prompt = cls(*audio_files.read(terminal.rereadable(path)))
        if audio_prompt.seconds >= recipe.seconds and not recipe.trim_prompt:
            raise ValueError(
                f"{path} lasts {audio_prompt.seconds:.1f} s, and --seconds is the length of the whole piece: ask for "
                f"more than {audio_prompt.seconds:.1f}"
            )
        return audio_prompt

    @property
    def seconds(self) -> float:
        return len(self.sound) / self.sample_rate

    def fitted(self, recipe: Recipe, window_seconds: float) -> _AudioPrompt:
        """The audio prompt, or with --trim-prompt its end: the overlap of two windows."""
        from mgjax.generation.arguments import default_stride  # which needs JAX

        window = recipe.window or window_seconds
        if self.seconds < window or not recipe.trim_prompt:  # `check` refuses what is longer
            return self
        kept = window - (recipe.stride or default_stride(window))
        return _AudioPrompt(self.sound[-round(kept * self.sample_rate) :], self.sample_rate)


def lufs(text: str) -> float | None:
    """An argparse type: loudness units below full scale, or None for "off"."""
    return None if text == "off" else float(text)
