"""Imports go one way: a module imports only what stands on a lower level, or beside it in its own family.

The table is the map of the package. A new module has to be placed in it.
"""

import ast
import configparser
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import jax.numpy as jnp
import pytest

from mgjax import nn
from mgjax.generation import sampling

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mgjax"

# Level by level, from the bottom: the folders and files of mgjax/ whose modules may import each other and all that
# is on lower levels. Beside each other, on one level, they may not.
LEVELS = [
    ["storage"],
    ["errors", "inputs"],
    ["audio", "devices", "kernels"],
    ["config", "nn", "metrics", "report", "synthetic"],
    ["codec", "conditioning"],
    ["lm"],
    ["checkpoints"],
    ["data"],
    ["generation"],
    ["api"],
    ["__init__"],
    ["train", "serve", "evaluate"],
    ["plan"],
    ["cli"],
    ["__main__"],
]

# Folders that may use less than all that is below them.
EXCEPT = {"lm": ["codec"]}

# Old names of modules, which hand on what has moved.
ALIASES = ["sharding", "data.audio"]

# Modules that may need more than a plain install brings: the extra of setup.cfg that they belong to.
EXTRAS = {
    "train": "train.* plan.* cli.plan cli.train data.conditions data.corpus data.corpus_writing "
    "data.datasets data.pipeline data.processes data.records",
    "synthetic": "synthetic.*",
    "cloud": "storage.buckets",
    "separate": "conditioning.separation",
}

# Where a distribution's name is not what is imported.
DISTRIBUTIONS = {
    "PyYAML": "yaml",
    "orbax-checkpoint": "orbax",
    "tensorflow-datasets": "tensorflow_datasets",
    "apache-beam": "apache_beam",
    "pillow": "PIL",
    "absl-py": "absl",
    "protobuf": "google",
}


def place(module: str) -> tuple[int, str]:
    """The level and the folder of a module (its dotted name without `mgjax.`)."""
    folder = module.partition(".")[0]
    for level, folders in enumerate(LEVELS):
        if folder in folders:
            return level, folder
    raise LookupError(f"mgjax.{module} stands nowhere in the table LEVELS of tests/test_layers.py: place it")


def name_of(path: Path, package: Path) -> str:
    return ".".join(path.relative_to(package).with_suffix("").parts)


def imports(path: Path, package: Path) -> list[tuple[int, str]]:
    """Line and full dotted name of all that a file imports, inside functions too."""
    found = []
    parts = [package.name, *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*parts[: len(parts) - node.level + 1], node.module or ""] if node.level else [node.module])
            found += [(node.lineno, f"{base.strip('.')}.{alias.name}") for alias in node.names]
    return found


def module_of(name: str, package: Path) -> str | None:
    """The module of the package that `name`, perhaps a name inside of it, comes from; None for third parties."""
    head, *rest = name.split(".")
    if head != package.name:
        return None
    for length in range(len(rest), 0, -1):
        path = package.joinpath(*rest[:length])
        if path.with_suffix(".py").exists():
            return ".".join(rest[:length])
        if path.is_dir():
            return ".".join([*rest[:length], "__init__"])
    return "__init__"


def violations(package: Path) -> list[str]:
    """One line for each import that goes up or sideways, and for each module without a place."""
    found = []
    for path in sorted(package.rglob("*.py")):
        module = name_of(path, package)
        if module in ALIASES:
            continue
        try:
            level, folder = place(module)
            for line, name in imports(path, package):
                target = module_of(name, package)
                if target is None:
                    continue
                target_level, target_folder = place(target)
                is_below = target_level < level and target_folder not in EXCEPT.get(folder, [])
                if target_folder != folder and not is_below:
                    found.append(
                        f"{path.relative_to(package.parent)}:{line}: {module} (level {level}) may not import "
                        f"{target} (level {target_level})"
                    )
        except LookupError as error:
            found.append(str(error))
    return found


def test_imports_go_one_way():
    found = violations(PACKAGE)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "line", "legal"),
    [
        ("codec.rvq", "from mgjax import config", True),
        ("codec.rvq", "from mgjax.config.model import LMConfig", True),
        ("nn", "from mgjax import load", False),
        ("nn", "import mgjax.codec.conv", False),
        ("config.model", "import mgjax.nn", False),
        ("config", "from mgjax import sharding", False),
        ("codec.rvq", "from mgjax.codec import conv", True),
        ("codec.rvq", "from . import conv", True),
        ("codec.rvq", "from ..conditioning import t5", False),
        ("codec.rvq", "def f():\n    from mgjax.conditioning.t5 import T5Encoder", False),
        ("lm.model", "from mgjax.conditioning.condition import Condition", True),
        ("lm.model", "from mgjax.checkpoints import hub", False),
        ("lm.model", "from mgjax.codec import rvq", False),
        ("checkpoints.native", "from mgjax.checkpoints import hub", True),
        ("checkpoints.native", "from mgjax.data import pipeline", False),
        ("audio.files", "from mgjax.data import pipeline", False),
        ("cli.generate", "from mgjax import cli, api", True),
        ("cli.generate", "import mgjax", True),
        ("api", "from mgjax.cli import main", False),
        ("utils", "import numpy", False),
    ],
)
def test_the_check_itself(tmp_path, module, line, legal):
    package = tmp_path / "mgjax"
    paths = "config/__init__ config/model devices/sharding nn codec/conv codec/rvq conditioning/condition lm/model api"
    paths += " conditioning/t5 checkpoints/native checkpoints/hub audio/files data/pipeline cli/__init__ __init__"
    for path in [*paths.split(), module.replace(".", "/")]:
        file = (package / path).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(line if name_of(file, package) == module else "")
    assert bool(violations(package)) != legal


def test_third_parties_are_declared():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = declared(setup["options"]["install_requires"]) | sys.stdlib_module_names | {"mgjax"}
    undeclared = []
    for path in sorted(PACKAGE.rglob("*.py")):
        extras = [extra for extra, patterns in EXTRAS.items() if matches(name_of(path, PACKAGE), patterns)]
        known = required.union(*(declared(setup["options.extras_require"][extra]) for extra in extras))
        undeclared += [
            f"{path.relative_to(ROOT)}:{line}: {name}"
            for line, name in imports(path, PACKAGE)
            if name.split(".")[0] not in known
        ]
    assert not undeclared, "imported, but not declared for this module in setup.cfg:\n" + "\n".join(undeclared)


def declared(requirements: str) -> set[str]:
    names = [re.match(r"[\w-]+", line)[0] for line in requirements.split("\n") if line]
    return {DISTRIBUTIONS.get(name, name) for name in names}


def matches(module: str, patterns: str) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns.split())


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    bare = [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()]
    assert not bare, f"without __init__.py these are missing from the wheel: {bare}"


@pytest.mark.parametrize("statement", ["import mgjax", "import mgjax.cli", "from mgjax.data import audio"])
def test_importing_is_light(statement):
    heavy = ["jax", "flax", "scipy", "torch", "transformers", "soundfile", "huggingface_hub"]
    code = f"import sys; {statement}; print(*[name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_types_and_shapes_are_checked_in_tests():
    """Of functions with shapes and without, and of the fields of modules: tests/checks.py."""
    calls = [
        lambda: nn.nearest(jnp.zeros((2, 3)), jnp.zeros((4, 5))),
        lambda: sampling.capacity_for("many"),
        lambda: nn.LayerNorm(eps="small"),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"type hint|Type-check error"):
            call()
