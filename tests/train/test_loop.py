import dataclasses
import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from mgjax.config.serialization import ConfigError
from mgjax.train.loop import LoopConfig, NotFiniteError, Task, fit
from mgjax.train.metrics import Mean, Sound
from mgjax.train.report import Report
from mgjax.train.state import TrainState

RATE = 0.25


def line(**changes) -> Task:
    """A task that compiles in no time: one weight for each column goes towards the mean of the rows."""

    def init(key, pretrained=None):
        weights = {"lm": {"w": jnp.zeros(4)}} if pretrained is None else pretrained
        return TrainState(jnp.int32(0), weights, (), weights, {})

    def train_step(state, frozen, batch):
        error = state.params["lm"]["w"] - jnp.mean(batch["x"], axis=0)
        params = {"lm": {"w": state.params["lm"]["w"] - RATE * error}}
        state = TrainState(state.step + 1, params, (), state.average, {})
        return state, {"loss": jnp.mean(jnp.square(error)), "largest": jnp.max(params["lm"]["w"])}

    def eval_step(state, frozen, batch):
        error = jnp.square(state.params["lm"]["w"][None] - batch["x"])
        return {"error": Mean.of(error), "nothing": Mean.of(error, jnp.zeros(error.shape, bool))}

    def save(state, directory):
        directory.mkdir(exist_ok=True)
        np.save(directory / "w.npy", state.params["lm"]["w"])

    task = Task("line", init, train_step, eval_step, {}, lambda batch: 1e3, None, save, ("error", "min"))
    return dataclasses.replace(task, **changes)


class Rows:
    """Batches of 8 rows around `target`; `events` maps the number of a batch to what happens when it is asked for."""

    def __init__(self, target=1.0, events=None):
        self.target, self.events, self.position, self.sets = target, events or {}, 0, []

    def __next__(self):
        self.position += 1
        if self.position in self.events:
            return self.events[self.position]()
        return rows(self.position, self.target)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.sets.append(state)
        self.position = state["position"]


def rows(seed, target=1.0, count=8):
    noise = np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)
    return {"x": target + 0.1 * noise}


def valid():
    yield rows(1000)
    yield rows(1001)


CONFIG = LoopConfig(steps=10, log_every=2, eval_every=4, save_every=3, keep_last=10)


def read(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_clock(lines):
    return [{key: value for key, value in line.items() if key != "clock"} for line in lines]


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_run_from_beginning_to_end(tmp_path, capfd):
    state = fit(line(), Rows(), valid, dataclasses.replace(CONFIG, peak_flops=1e6), tmp_path)
    # Each update goes a quarter of the way to the mean of its rows.
    expected = np.zeros(4)
    for seed in range(1, 11):
        expected += RATE * (rows(seed)["x"].mean(axis=0) - expected)
    np.testing.assert_allclose(state.params["lm"]["w"], expected, rtol=1e-5)
    assert int(state.step) == 10

    lines = read(tmp_path)
    assert [(line["step"], line["split"]) for line in lines] == [
        *((step, split) for step, split in [(2, "train"), (4, "train"), (4, "valid"), (6, "train"), (8, "train")]),
        *((step, split) for step, split in [(8, "valid"), (10, "train"), (10, "valid")]),
    ]
    errors = np.square(expected - np.concatenate([batch["x"] for batch in valid()]))
    assert lines[-1]["values"] == {"error": pytest.approx(errors.mean(), rel=1e-5)}
    assert lines[1]["clock"]["examples_per_second"] > 0
    assert lines[1]["clock"]["utilization"] == pytest.approx(
        lines[1]["clock"]["examples_per_second"] / 8 * 1e3 / 8 / 1e6, rel=1e-6
    )

    assert kept(tmp_path) == [3, 4, 6, 8, 9, 10]  # each third, each validated, and the last
    assert json.loads((tmp_path / "config.json").read_text())["loop"]["seed"] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "model" / "w.npy"), state.params["lm"]["w"])
    said = capfd.readouterr().err
    assert "mgjax: line: step 4 of 10, loss 0." in said
    assert "% of peak" in said
    assert "mgjax: step 8: error 0.0" in said


def test_a_finished_run_stays_as_it_is(tmp_path):
    one = fit(line(), Rows(), valid, CONFIG, tmp_path)
    lines = read(tmp_path)
    two = fit(line(), Rows(events={1: pytest.fail}), valid, CONFIG, tmp_path)
    np.testing.assert_array_equal(one.params["lm"]["w"], two.params["lm"]["w"])
    assert read(tmp_path) == lines
    with pytest.raises(ConfigError, match=r"has done 10 updates, loop.steps is 9"):
        fit(line(), Rows(), valid, dataclasses.replace(CONFIG, steps=9), tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_with_a_checkpoint(tmp_path, number, capfd):
    before = signal.getsignal(number)

    def stop():
        os.kill(os.getpid(), number)
        return rows(5)

    state = fit(line(), Rows(events={5: stop}), valid, CONFIG, tmp_path / "stopped")
    assert int(state.step) == 5
    assert kept(tmp_path / "stopped") == [3, 4, 5]
    assert signal.getsignal(number) == before
    assert not (tmp_path / "stopped" / "model").exists()
    assert "stopped after step 5" in capfd.readouterr().err

    data = Rows()
    state = fit(line(), data, valid, CONFIG, tmp_path / "stopped")
    assert data.sets == [{"position": 5}]
    whole = fit(line(), Rows(), valid, CONFIG, tmp_path / "whole")
    np.testing.assert_array_equal(state.params["lm"]["w"], whole.params["lm"]["w"])
    assert without_clock(read(tmp_path / "stopped")) == without_clock(read(tmp_path / "whole"))


def test_lines_of_a_future_that_did_not_happen_are_dropped(tmp_path):
    fit(line(), Rows(), valid, dataclasses.replace(CONFIG, steps=6), tmp_path)
    lines = read(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "split": "train", "values": {}, "clock": {}}\n{"step": 8, "spl')
    fit(line(), Rows(), valid, dataclasses.replace(CONFIG, steps=6), tmp_path)
    assert read(tmp_path) == lines


def nothing_finite():
    return {"x": np.full((8, 4), np.nan, np.float32)}


def test_what_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(NotFiniteError, match=r"^largest, loss: not finite after update 8. The last good .* step 6"):
        fit(line(), Rows(events={8: nothing_finite}), valid, dataclasses.replace(CONFIG, eval_every=0), tmp_path)
    assert kept(tmp_path) == [3, 6]
    with pytest.raises(NotFiniteError, match="There is no checkpoint yet"):
        fit(line(), Rows(events={1: nothing_finite}), valid, CONFIG, tmp_path / "new")


def test_what_is_not_finite_can_be_left_out(tmp_path, capfd):
    config = dataclasses.replace(CONFIG, eval_every=0, log_every=1, max_skipped=2)
    early = fit(line(), Rows(), valid, dataclasses.replace(config, steps=7), tmp_path / "early")
    bad = dict.fromkeys((8, 9), nothing_finite)
    late = fit(line(), Rows(events=bad), valid, dataclasses.replace(config, steps=9), tmp_path / "late")
    assert late.step == 9
    np.testing.assert_array_equal(late.params["lm"]["w"], early.params["lm"]["w"])
    assert (
        "largest, loss: not finite in update 9, which is left out: 2 in a row, of 2 at most" in capfd.readouterr().err
    )
    told = [line["values"] for line in read(tmp_path / "late") if line["split"] == "train"]
    assert [values["skipped"] for values in told] == [0] * 7 + [1] * 2
    assert told[8] == {"skipped": 1}
    events = dict.fromkeys((3, 4, 7, 8, 9), nothing_finite)
    with pytest.raises(NotFiniteError, match=r"not finite after update 9. The last good .* step 6"):
        fit(line(), Rows(events=events), valid, config, tmp_path / "more")


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    def train_step(state, frozen, batch):
        state, metrics = line().train_step(state, frozen, batch)
        bad = jnp.where(state.step == 6, jnp.inf, state.params["lm"]["w"])
        return state.replace(params={"lm": {"w": bad}}), {"loss": metrics["loss"]}

    with pytest.raises(NotFiniteError, match=r"^params/lm/w: not finite after update 6. The last good .* step 4"):
        fit(line(train_step=train_step), Rows(), valid, CONFIG, tmp_path)
    assert kept(tmp_path) == [3, 4]


def test_the_best_model_is_saved_apart(tmp_path):
    """After update 4 the rows are others than those of the validation."""
    events = {number: (lambda number=number: rows(number, target=9.0)) for number in range(5, 11)}
    state = fit(line(), Rows(events=events), valid, dataclasses.replace(CONFIG, keep_last=1), tmp_path)
    assert kept(tmp_path) == [4, 10]
    early = fit(line(), Rows(), valid, dataclasses.replace(CONFIG, steps=4), tmp_path / "early")
    np.testing.assert_array_equal(np.load(tmp_path / "best" / "w.npy"), early.params["lm"]["w"])
    np.testing.assert_array_equal(np.load(tmp_path / "model" / "w.npy"), state.params["lm"]["w"])


@dataclasses.dataclass(frozen=True)
class Run:
    loop: LoopConfig
    width: int = 4
    names: tuple[str, ...] = ("a", "b")


def test_another_run_does_not_go_on_in_the_same_folder(tmp_path):
    config = dataclasses.replace(CONFIG, steps=4)
    fit(line(), Rows(), valid, config, tmp_path, run=Run(config))
    fit(line(), Rows(), valid, config, tmp_path, run=Run(dataclasses.replace(config, log_every=1)))
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(ConfigError, match=r"loop.seed is 0 there and 1 here, width is 4 there and 5 here"):
        fit(line(), Rows(), valid, other, tmp_path, run=Run(other, width=5))


def test_a_longer_run_goes_on(tmp_path):
    fit(line(), Rows(), valid, dataclasses.replace(CONFIG, steps=5), tmp_path / "longer")
    longer = fit(line(), Rows(), valid, CONFIG, tmp_path / "longer")
    whole = fit(line(), Rows(), valid, CONFIG, tmp_path / "whole")
    np.testing.assert_array_equal(longer.params["lm"]["w"], whole.params["lm"]["w"])


def test_pretrained_weights_are_where_it_begins(tmp_path):
    pretrained = {"lm": {"w": np.full(4, 1.0, np.float32)}}
    state = fit(line(pretrained=pretrained), Rows(), valid, dataclasses.replace(CONFIG, steps=2), tmp_path)
    np.testing.assert_array_equal(state.average["lm"]["w"], np.ones(4))
    np.testing.assert_allclose(state.params["lm"]["w"], np.ones(4), atol=0.1)


def test_metrics_are_read_while_the_next_update_runs(tmp_path, monkeypatch):
    """They are fetched after the next update was begun, unless a checkpoint waits for this very state."""
    order, trained = [], Report.trained

    def read(report, step, values):
        order.append(("read", step))
        trained(report, step, values)

    class Asked(Rows):
        def __next__(self):
            order.append(("asked", self.position + 1))
            return super().__next__()

    monkeypatch.setattr(Report, "trained", read)
    fit(line(), Asked(), valid, dataclasses.replace(CONFIG, steps=6, eval_every=0, save_every=4), tmp_path)
    assert order == [
        *[("asked", 1), ("asked", 2), ("read", 1), ("asked", 3), ("read", 2), ("asked", 4), ("read", 3), ("read", 4)],
        *[("asked", 5), ("asked", 6), ("read", 5), ("read", 6)],
    ]


def test_a_validation_must_give_what_says_which_is_best(tmp_path):
    with pytest.raises(ConfigError, match=r"gave \['error'\], not nothing"):
        fit(line(best=("nothing", "min")), Rows(), valid, CONFIG, tmp_path / "a")
    with pytest.raises(ConfigError, match="the validation split has no batch"):
        fit(line(), Rows(), lambda: (batch for batch in ()), CONFIG, tmp_path / "b")


def test_curves_and_sounds_are_in_tensorboard(tmp_path):
    def show(state, batch):
        tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000).astype(np.float32)
        return {"tone": Sound(np.stack([tone, tone], axis=1) * batch["x"].shape[0] / 10, 8000)}

    config = dataclasses.replace(CONFIG, steps=6, show_every=4)
    fit(line(show=show), Rows(), valid, config, tmp_path)
    fit(line(show=show), Rows(), valid, dataclasses.replace(config, steps=7), tmp_path)
    first, second = (list(EventFileLoader(str(path)).Load()) for path in sorted((tmp_path / "tensorboard").iterdir()))
    found = {(event.step, value.tag): value for event in first for value in event.summary.value}
    losses = {line["step"]: line["values"]["loss"] for line in read(tmp_path) if line["split"] == "train"}
    assert found[4, "train/loss"].tensor.float_val == pytest.approx([losses[4]])
    assert (4, "valid/error") in found
    assert (4, "train/examples_per_second") in found
    wav = found[4, "tone"].tensor.string_val[0]
    assert (wav[:4], len(wav)) == (b"RIFF", 44 + 2 * 2 * 8000)
    assert found[4, "tone/spectrogram"].tensor.string_val[2].startswith(b"\x89PNG")
    assert [(event.step, event.session_log.status) for event in second if event.HasField("session_log")] == [(7, 1)]


@pytest.mark.parametrize(
    ("setting", "value"), [("steps", 0), ("log_every", 0), ("save_every", 0), ("keep_last", 0), ("eval_every", -1)]
)
def test_settings_are_checked(setting, value):
    with pytest.raises(ConfigError, match=f"loop.{setting} must be"):
        dataclasses.replace(CONFIG, **{setting: value})
