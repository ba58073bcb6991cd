"""The README is true: its code runs, its two commands stand where .ci/run looks for them, its paths exist."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from mgjax import cli
from mgjax.checkpoints import hub
from mgjax.checkpoints.native import Checkpoint, write_model
from mgjax.checkpoints.random_weights import DEBUG, random_variables
from mgjax.config.conditioning import MelodyConfig
from mgjax.config.model import Fused

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


class Block(NamedTuple):
    language: str
    code: str
    skipped: str | None  # the reason why it is not run


def blocks(text):
    pattern = r"^(?:<!-- not run: (?P<skipped>.+?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$"
    return [Block(**match.groupdict()) for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL)]


def commands(code):
    """The commands of a shell block, as lists of words."""
    lines = code.replace("\\\n", " ").replace("&&", "\n").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A toy in place of mini, which compiles in less time; test_mini.py plays the real one."""
    melody = MelodyConfig(fft_size=4096, hop_length=3200, num_frames=100, null="nothing")
    conditions = (*DEBUG.lm.conditions, Fused("melody", 12, "interpolate"))
    toy = dataclasses.replace(DEBUG, lm=dataclasses.replace(DEBUG.lm, conditions=conditions), melody=melody)
    folder = tmp_path_factory.mktemp("pretrained")
    write_model(folder / "mini", Checkpoint(toy, random_variables(toy)))
    return folder


@pytest.fixture(autouse=True)
def mini(pretrained, monkeypatch):
    monkeypatch.setattr(hub, "_PRETRAINED", pretrained)


RUN = [block for block in blocks(README) if block.skipped is None]


def test_every_block_is_seen():
    assert README.count("```") == 2 * len(blocks(README))
    assert {block.language for block in blocks(README)} == {"bash", "python"}
    assert README.count("<!-- not run") == len(blocks(README)) - len(RUN)


@pytest.mark.parametrize("block", [block for block in blocks(README) if block.skipped], ids=lambda block: block.code)
def test_only_installs_and_downloads_are_skipped(block):
    assert "pip install" in block.code or "facebook/" in block.code


@pytest.mark.filterwarnings("ignore:.*has a peak of")  # the toy's noise
@pytest.mark.parametrize("block", [block for block in RUN if block.language == "python"], ids=lambda _: "")
def test_python(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block.code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", [block for block in RUN if block.language == "bash"], ids=lambda _: "")
def test_commands(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for program, command, *rest in commands(block.code):
        assert program == "mgjax", f"{program} cannot be run here: mark the block with <!-- not run: reason -->"
        assert cli.main([command, *rest, "--cache", "off"]) == 0, rest


def test_ci_finds_the_two_commands():
    for pattern in re.findall(r"grep -m 1 (['\"])(.*?)\1 README.md", (ROOT / ".ci/run").read_text()):
        assert len(re.findall(pattern[1], README, re.MULTILINE)) == 1
    assert (ROOT / ".ci/run").read_text().count("README.md)") == 2


def test_paths_exist():
    paths = re.findall(r"`((?:mgjax|tests|benchmarks|configs|launch)/[\w./]*)`", README)
    assert len(paths) > 5
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing
    links = [target for target in re.findall(r"\]\((.*?)\)", README) if "://" not in target]
    assert links
    assert all((ROOT / target).exists() for target in links)
