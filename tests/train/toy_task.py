"""A language model of a few thousand weights, with the names and the axes of the real one, and endless data for it.

As a script it runs the loop in child processes that come to grief where they are told to; see test_kill.py.
"""

import dataclasses
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mgjax.devices.sharding import path_of
from mgjax.train.loop import LoopConfig, Task, fit
from mgjax.train.metrics import Mean, Sound
from mgjax.train.state import TrainState

ROWS, FRAMES, BOOKS, CODES = 16, 6, 2, 16
LAYERS, WIDTH, HEADS = 2, 32, 8
DECAY = 0.9


def task(seed: int = 0, learning_rate: float = 0.02, ballast: int = 1) -> Task:
    """The task; `ballast` numbers make its checkpoints slower to write."""
    optimizer = optax.adamw(learning_rate)

    def init(key):
        shapes = {
            "embed": {"embedding": (BOOKS, CODES, WIDTH)},
            "layers": {
                "norm": {"scale": (LAYERS, WIDTH)},
                "self_attn": {
                    "qkv": {"kernel": (LAYERS, WIDTH, 3, HEADS, WIDTH // HEADS)},
                    "out": {"kernel": (LAYERS, HEADS, WIDTH // HEADS, WIDTH)},
                },
                "ffn": {"up": {"kernel": (LAYERS, WIDTH, 64)}, "down": {"kernel": (LAYERS, 64, WIDTH)}},
            },
            "head": {"kernel": (WIDTH, BOOKS, CODES)},
        }
        leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda node: isinstance(node, tuple))
        ends = np.cumsum([np.prod(shape) for shape in leaves])
        drawn = jnp.split(0.2 * jax.random.normal(key, (ends[-1],)), ends[:-1])  # one draw, which compiles quickly
        made = [part.reshape(shape) for part, shape in zip(drawn, leaves, strict=True)]
        params = {"lm": jax.tree.unflatten(tree, made)}
        extra = {"used": jnp.zeros((BOOKS, CODES)), "ballast": jnp.sin(jnp.arange(ballast, dtype=jnp.float32))}
        return TrainState(jnp.int32(0), params, optimizer.init(params), params, extra)

    def losses(lm, codes, key):
        """The cross-entropy of every code given the codes of the frames before. Dropout where there is a key."""
        x = sum(jnp.take(lm["embed"]["embedding"][k], codes[:, :-1, k], axis=0) for k in range(BOOKS))
        mask = jnp.tril(jnp.ones((FRAMES - 1, FRAMES - 1), bool))

        def layer(x, weights):
            y = x * weights["norm"]["scale"][None, None]
            query, keys, values = jnp.einsum("btd,dphe->pbthe", y, weights["self_attn"]["qkv"]["kernel"])
            scores = jnp.where(mask[None, None], jnp.einsum("bthe,bshe->bhts", query, keys), -1e9)
            mixed = jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(scores), values)
            x = x + jnp.einsum("bthe,hed->btd", mixed, weights["self_attn"]["out"]["kernel"])
            wide = jax.nn.gelu(jnp.einsum("btd,df->btf", x, weights["ffn"]["up"]["kernel"]))
            return x + jnp.einsum("btf,fd->btd", wide, weights["ffn"]["down"]["kernel"]), None

        x, _ = jax.lax.scan(layer, x, lm["layers"])
        if key is not None:
            x = jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x, 0.0)
        logits = jnp.einsum("btd,dkv->btkv", x, lm["head"]["kernel"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, codes[:, 1:])

    def train_step(state, frozen, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss(params):
            return jnp.mean(losses(params["lm"], batch["codes"], key)) + 0.0 * jnp.sum(frozen["text"]["kernel"])

        value, gradients = jax.value_and_grad(loss)(state.params)
        updates, opt = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = jax.tree.map(lambda old, new: DECAY * old + (1 - DECAY) * new, state.average, params)
        used = state.extra["used"] + jnp.sum(jax.nn.one_hot(batch["codes"], CODES), axis=(0, 1))
        state = TrainState(state.step + 1, params, opt, average, {**state.extra, "used": used})
        return state, {"loss": value, "gradient_norm": optax.tree.norm(gradients)}

    def eval_step(state, frozen, batch):
        return {"ce": Mean.of(losses(state.average["lm"], batch["codes"], None))}

    def show(state, batch):
        tone = np.sin(np.arange(4000) / 10).astype(np.float32)
        return {"tone": Sound(tone[:, None] * float(state.step) / 100, 8000)}

    def save(state, directory):
        directory.mkdir(exist_ok=True)
        np.savez(directory / "state.npz", **arrays(state))

    return Task(
        name="toy",
        init=init,
        train_step=train_step,
        eval_step=eval_step,
        frozen={"text": {"kernel": np.ones((8, 8), np.float32)}},
        flops=lambda batch: 1e6 * batch["codes"].shape[0],
        show=show,
        save=save,
        best=("ce", "min"),
    )


def arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Every array of a state by its path."""
    return {path_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


class Batches:
    """Codes in which each is the one before plus one, by chance; a function of their number."""

    def __init__(self, seed: int, count: int | None = None):
        self.seed, self.count, self.position = seed, count, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.position == self.count:
            raise StopIteration
        rng = np.random.default_rng([self.seed, self.position])
        first = rng.integers(CODES, size=(ROWS, 1, BOOKS))
        steps = (rng.random((ROWS, FRAMES - 1, BOOKS)) < 0.9).astype(np.int64)
        codes = np.concatenate([first, first + np.cumsum(steps, axis=1)], axis=1) % CODES
        self.position += 1
        return {"codes": codes.astype(np.int32)}

    def get_state(self):
        return {"num_batches": self.position}

    def set_state(self, state):
        self.position = state["num_batches"]

    def close(self):
        pass


def valid() -> Batches:
    return Batches(seed=1, count=3)


KILLED = LoopConfig(steps=14, log_every=2, eval_every=6, save_every=3, show_every=5, keep_last=2, keep_best=1)


class Interrupted(Batches):
    """Batches that do something to the process when the batch with the number `moment` is asked for."""

    def __init__(self, moment: int, action):
        super().__init__(seed=0)
        self.moment, self.action = moment, action

    def __next__(self):
        if self.position == self.moment:
            self.action()
        return super().__next__()


def hang() -> None:
    time.sleep(1000)


def kill(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk() -> None:
    """From now on no file can be larger than 256 KiB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, resource.RLIM_INFINITY))


def kill_when_writing(folder: Path) -> None:
    """Kills the process as soon as a file of the checkpoint that is written into `folder` is there."""
    while not any(path.is_file() for path in folder.parent.glob(f"{folder.name}.*/**/*")):
        time.sleep(0.0005)
    kill()


def child(workdir: Path, kind: str, moment: int) -> None:
    """A run that is killed before, or whose disk is full after, the update with the number `moment`, and so on."""
    toy, data = task(ballast=2_000_000), Batches(seed=0)
    if kind == "killed after":
        data = Interrupted(moment, kill)
    elif kind == "hangs before":
        data = Interrupted(moment - 1, hang)
    elif kind == "disk full after":
        data = Interrupted(moment, fill_disk)
    elif kind == "killed when writing":
        folder = workdir / "checkpoints" / str(moment)
        threading.Thread(target=kill_when_writing, args=(folder,), daemon=True).start()
    elif kind == "killed when saving":
        toy = dataclasses.replace(toy, save=kill)
    fit(toy, data, valid, dataclasses.replace(KILLED, hang_seconds=5.0 if kind == "hangs before" else 1800.0), workdir)


if __name__ == "__main__":
    # Every process is a fork of this one, which has imported everything and started nothing.
    for workdir, kind, moment in json.loads(sys.argv[1]):
        process = os.fork()
        if not process:
            try:
                child(Path(workdir), kind, moment)
            except OSError as error:
                print(error, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
