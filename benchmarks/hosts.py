"""Several hosts, as real processes of this machine that talk by gloo: what they learn and make, and what becomes of
them when one is killed, frozen or told to stop.

    python benchmarks/hosts.py              # 20 minutes on two cores
    python benchmarks/hosts.py --only batch --keep /tmp/hosts

The scripts of launch/ are started as a user starts them, each with its share of 4 (training) or 8 (batch) devices.

Several processes add up in another order than one. In the language model that stays rounding. In the codec, the code of
a frame that lies half-way between two codewords may turn out otherwise, and the codewords follow it.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
LIMIT = 3600  # seconds that any of it may take

LM = """
--config.data.batch_size=8 --config.data.segment_seconds=1.0 --config.mesh.fsdp=2 --config.loop.steps=24
--config.loop.log_every=2 --config.loop.eval_every=12 --config.loop.show_every=24 --config.loop.save_every=5
--config.prompt_seconds=0.5
"""
CODEC = """
--config.data.batch_size=4 --config.data.segment_seconds=0.2 --config.discriminator.stft_sizes=(256,)
--config.mesh.fsdp=2 --config.loop.steps=6 --config.loop.log_every=1 --config.loop.eval_every=6
--config.loop.show_every=6 --config.loop.save_every=6
"""


class Processes:
    """Several processes of one command, each with its part of the devices."""

    def __init__(self, script: str, count: int, devices: int, log: Path, arguments: list[str], cache: Path):
        with socket.socket() as found:
            found.bind(("localhost", 0))
            port = found.getsockname()[1]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // count}",
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "HF_HUB_OFFLINE": "1",
        }
        self.logs, self.running, self.ended = [], [], {}
        for process in range(count):
            self.logs.append(log.with_name(f"{log.name}.{process}.log"))
            who = ["--coordinator", f"localhost:{port}", "--num_processes", str(count), "--process_id", str(process)]
            command = [sys.executable, ROOT / "launch" / script, *arguments, *(who if count > 1 else [])]
            with self.logs[-1].open("a") as file:
                self.running.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))

    def poll(self) -> bool:
        """Whether any still runs; notes when each of the others ended."""
        for process, one in enumerate(self.running):
            if one.poll() is not None:
                self.ended.setdefault(process, time.monotonic())
        return len(self.ended) < len(self.running)

    def until(self, condition) -> None:
        """Returns when `condition` holds, or all have ended."""
        begun = time.monotonic()
        while self.poll() and not condition():
            if time.monotonic() - begun > LIMIT:
                raise TimeoutError(self.said())
            time.sleep(0.05)

    def wait(self) -> list[int]:
        """The exit status of each."""
        self.until(lambda: False)
        return [one.returncode for one in self.running]

    def said(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in self.logs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in self.running:
            with contextlib.suppress(ProcessLookupError):
                one.kill()
            one.wait()


def row(what: str, found: str) -> None:
    print(f"| {what} | {found} |", flush=True)


class Training:
    """Runs of one kind of model in folders of one folder."""

    def __init__(self, kind: str, folder: Path, corpus: str, settings: str):
        self.kind, self.folder = kind, folder
        self.arguments = [f"--config={ROOT}/configs/{kind}.py:debug", *settings.split()]
        self.arguments.append(f"--config.data.corpora=('{folder / corpus}',)")

    def start(self, name: str, count: int) -> Processes:
        workdir = [*self.arguments, f"--workdir={self.folder / name}"]
        return Processes(f"train_{self.kind}.py", count, 4, self.folder / name, workdir, self.folder / "cache")

    def run(self, name: str, count: int) -> None:
        """A run to its end."""
        with self.start(name, count) as processes:
            statuses = processes.wait()
            assert statuses == [0] * count, (statuses, processes.said())

    def lines(self, name: str) -> list[dict]:
        path = self.folder / name / "metrics.jsonl"
        if not path.exists():
            return []
        found = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        return [{key: value for key, value in line.items() if key != "clock"} for line in found]

    def step(self, name: str) -> int:
        return max((line["step"] for line in self.lines(name)), default=0)

    def compared(self, name: str, other: str) -> str:
        """How far the numbers of two runs, and the weights that they end with, are apart."""
        from safetensors.numpy import load_file

        one, two = self.lines(name), self.lines(other)
        assert [(line["step"], line["split"]) for line in one] == [(line["step"], line["split"]) for line in two]
        pairs = [
            (mine["values"][key], yours["values"][key])
            for mine, yours in zip(one, two, strict=True)
            for key in mine["values"]
        ]
        numbers = max(abs(a - b) / max(abs(a), 1e-6) for a, b in pairs)
        weights, same = 0.0, one == two
        for part in ("model", "best"):
            for path in sorted((self.folder / name / part).glob("*.safetensors")):
                mine, yours = load_file(path), load_file(self.folder / other / part / path.name)
                assert mine.keys() == yours.keys()
                same &= all(mine[key].tobytes() == yours[key].tobytes() for key in mine)
                weights = max(
                    weights, *(float(np.abs(mine[key].astype(np.float64) - yours[key]).max()) for key in mine)
                )
        if same:
            return "the same bits"
        return f"metrics differ by {numbers:.1e} (relative), weights by {weights:.1e}"

    def troubled(self, name: str, number: int) -> None:
        """A run of two processes, the second of which gets a signal at half its way; then both go on."""
        with self.start(name, 2) as processes:
            processes.until(lambda: self.step(name) >= 8)
            begun, step = time.monotonic(), self.step(name)
            processes.running[1].send_signal(number)
            processes.until(lambda: 0 in processes.ended)
            if number == signal.SIGSTOP:
                processes.running[1].kill()
            statuses = processes.wait()
            seconds = processes.ended[0] - begun
            last = processes.logs[0].read_text()
        ended = re.findall(r"stopped after step (\d+)", last)
        words = ("stopped after step", "unhealthy", "ends with status")
        message = next((word for word in words if word in last), "it was done before")
        told = f"step {step}; the other process ended {seconds:.1f} s later ({message!r}), statuses {statuses}"
        told += f", both after step {ended[0]}" if ended else ""
        row(f"one of two gets {signal.Signals(number).name} at", told)
        self.run(name, 2)
        row("... and both go on: beside an undisturbed run", self.compared("two", name))

    def moved(self, count: int) -> None:
        """What four have written is gone on from by others."""
        name = f"four, then {count}"
        shutil.copytree(self.folder / "four", self.folder / name)
        shutil.rmtree(self.folder / name / "checkpoints" / "24")
        self.run(name, count)
        said = (self.folder / f"{name}.0.log").read_text()
        step = re.findall(r"goes on from the checkpoint of step (\d+)", said)[0]
        row(
            f"a checkpoint (step {step}) of four processes goes on in {count}, beside four", self.compared("four", name)
        )


def train(folder: Path) -> None:
    """A language model and a codec."""
    runs = Training("lm", folder, "tokens", LM)
    for name, count in (("one", 1), ("two", 2), ("four", 4)):
        runs.run(name, count)
    row("language model, 24 updates, mesh data 2 x fsdp 2: two processes beside one", runs.compared("one", "two"))
    row("four processes beside one", runs.compared("one", "four"))
    runs.troubled("killed", signal.SIGKILL)
    runs.troubled("frozen", signal.SIGSTOP)
    runs.troubled("told", signal.SIGTERM)
    runs.troubled("interrupted", signal.SIGINT)
    runs.moved(1)
    runs.moved(2)
    codec = Training("codec", folder / "codec", "../sound", CODEC)
    (folder / "codec").mkdir()
    codec.run("one", 1)
    codec.run("two", 2)
    row("codec, 6 updates: two processes beside one", codec.compared("one", "two"))


def batch(folder: Path) -> None:
    """64 prompts by two hosts of four devices each."""
    import hashlib

    import mgjax
    from mgjax.audio import files as audio_files
    from mgjax.audio import loudness

    words = ["slow waltz", "driving techno", "calm piano", "brass band", "surf guitar", "jazz", "fiddle", "synth pop"]
    prompts = [
        {
            "text": f"{words[i % 8]}, {'very ' * (i % 5)}{i}",
            "seconds": 1.0 if i % 3 else 0.6,
            "id": f"p{i}",
            "seed": 7 * i,
        }
        for i in range(64)
    ]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))

    def start(out: str, count: int, *more: str) -> Processes:
        arguments = ["--model", "debug", "--prompts", str(file), "--out", str(folder / out), "--batch", "8", *more]
        return Processes("generate_batch.py", count, 4 * count, folder / out, arguments, folder / "cache")

    parts = folder / "music" / "parts"
    with start("music", 2) as processes:
        processes.until(lambda: parts.is_dir() and len(list(parts.glob("*.jsonl"))) >= 3)
        processes.running[0].kill()
        processes.running[1].kill()
        processes.wait()
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "music").glob("*.wav")}
    with start("music", 2) as processes:
        assert processes.wait() == [0, 0], processes.said()
    lines = [json.loads(line) for line in (folder / "music" / "manifest.jsonl").read_text().splitlines()]
    wavs = sorted((folder / "music").glob("*.wav"))
    kept = sum(before.get(path.name) == path.stat().st_mtime_ns for path in wavs)
    row("64 prompts, 2 processes of 4 devices, both killed", f"{len(before)} files were there, {kept} were kept")
    names = [line["name"] for line in lines]
    row("... and started again", f"{len(wavs)} files, {len(set(names))} different names, {len(lines)} lines")

    model = mgjax.load("debug")
    codes_equal, files_equal, apart = 0, 0, 0.0
    for prompt, line in zip(prompts, lines, strict=True):
        options = {"seconds": prompt["seconds"], "seed": prompt["seed"]}
        codes = model.generate_codes(prompt["text"], **options)[0]
        codes_equal += hashlib.sha256(np.ascontiguousarray(codes, "<i4").tobytes()).hexdigest() == line["codes_sha256"]
        alone = loudness.normalized(model.generate(prompt["text"], **options)[0], model.sample_rate)
        audio_files.write(folder / "alone.wav", alone, model.sample_rate)
        mine, theirs = (audio_files.read(path)[0] for path in (folder / "alone.wav", folder / "music" / line["file"]))
        files_equal += np.array_equal(mine, theirs)
        apart = max(apart, float(np.abs(mine - theirs).max()))
    row("beside each prompt alone, a batch of one on one device", f"{codes_equal} of 64 have the same codes")
    row(
        "... their sound, in 16 bits",
        f"{files_equal} files have the same samples, the others differ by {apart * 2**15:.0f}",
    )

    with start("by one", 1) as processes:
        assert processes.wait() == [0], processes.said()
    same = sum(path.read_bytes() == (folder / "by one" / path.name).read_bytes() for path in wavs)
    row("beside one process of 4 devices", f"{same} of 64 files have the same bytes")
    with start("records", 2, "--format", "array_record") as processes:
        assert processes.wait() == [0, 0], processes.said()
    from mgjax.data.corpus import Corpus

    corpus = Corpus.open(folder / "records")
    sounds = {corpus.name(piece): corpus.read(piece) for piece in range(len(corpus))}
    apart = max(float(np.abs(sounds[path.stem] - audio_files.read(path)[0]).max()) for path in wavs)
    row("as a corpus (array_record)", f"{len(corpus)} pieces, whose sound differs by {apart * 2**15:.0f} in 16 bits")


def write_corpora(folder: Path) -> None:
    """Codes and sound to train on, of random numbers that follow from each other."""
    import mgjax
    from mgjax.audio.metadata import Metadata
    from mgjax.data import corpus_writing, description

    rng = np.random.default_rng(0)
    codec = mgjax.load_codec("debug")
    tokens = description.Description(
        kind="tokens", sample_rate=32_000, channels=1, frame_rate=50.0, num_codebooks=4, codebook_size=64,
        codec_source="debug", codec_hash=codec.hash,
    )  # fmt: skip

    def piece(i: int, content: object) -> corpus_writing.Piece:
        return corpus_writing.Piece(f"piece {i}", Metadata(description=f"number {i}"), content)

    def codes(i: int) -> np.ndarray:
        return (rng.integers(64, size=(1, 4)) + np.cumsum(rng.random((150, 4)) < 0.9, axis=0)) % 64

    def sound(i: int) -> list[np.ndarray]:
        time = np.arange(64_000) / 32_000
        return [(0.3 * np.sin(2 * np.pi * 110 * (1 + i) * time) + 0.05 * rng.standard_normal(64_000))[:, None]]

    for name, kind, make in (("tokens", tokens, codes), ("sound", description.describe_audio(32_000, 1), sound)):
        splits = {"train": [piece(i, make(i)) for i in range(8)], "valid": [piece(i, make(i)) for i in range(8, 13)]}
        (folder / name).mkdir()
        shards = {}
        for split, pieces in splits.items():
            path = description.shard_path(folder / name, kind.kind, split, 0, 1)
            shards[split] = [corpus_writing.write_shard(path, kind, pieces)]
        corpus_writing.finish(folder / name, kind, shards)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["train", "batch"])
    parser.add_argument(
        "--keep", type=Path, help="a new folder for all that is made; one that goes away where not given"
    )
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() if args.keep is None else contextlib.nullcontext(args.keep) as name:
        folder = Path(name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        row("what", "found")
        row("---", "---")
        if args.only != "batch":
            write_corpora(folder)
            train(folder)
        if args.only != "train":
            batch(folder)


if __name__ == "__main__":
    main()
