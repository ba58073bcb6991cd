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

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mgjax"

# Level by level, from the bottom. Each string is a family: patterns of module names whose members may import each
# other. A whole name goes before a pattern.
LEVELS = [
    ["errors", "inputs.*"],
    [
        *("chips", "config conditioner_config strict_json", "sharding", "hosts", "interop.torch_file"),
        *("data.__init__", "interop.__init__", "train.__init__", "plan.__init__"),
        *("data.audio data.loudness data.sound", "data.metadata", "data.parent"),
    ],
    ["nn", "finite", "data.synthetic.*"],
    ["codec.*", "conditioning.*"],
    ["lm.*"],
    [
        "checkpoint interop.*",
        "data.conditions data.corpus data.corpus_writing data.pieces data.pipeline data.prompts data.records",
        "evaluate.*",
    ],
    ["api checks conditioner formats initialize melody references separate steering style __init__"],
    [
        "batch",
        "train.* plan.*",
        "data.assembly data.build data.datasets data.first_program data.processes data.sources data.tokenize",
        "data.vocabulary",
    ],
    ["finetune"],
    ["cli cli.* __main__"],
]

# Families that may use less than all that is below them: only these levels, and these modules.
NARROWER = {"lm.*": ([0, 1, 2], ["conditioning.condition", "conditioning.__init__"])}

# Modules that may need more than a plain install brings: the extra of setup.cfg that they belong to.
EXTRAS = {
    "train": "train.* plan.* finetune cli.plan cli.training data.conditions data.corpus data.corpus_writing "
    "data.datasets data.pieces data.pipeline data.processes data.records",
    "synthetic": "data.synthetic.*",
    "separate": "separate",
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
    """The level and the family of a module (its dotted name without `mgjax.`)."""
    for pattern_is_exact in (True, False):
        for level, families in enumerate(LEVELS):
            for family in families:
                for pattern in family.split():
                    if (pattern == module) if pattern_is_exact else fnmatchcase(module, pattern):
                        return level, family
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
        try:
            level, family = place(module)
            for line, name in imports(path, package):
                target = module_of(name, package)
                if target is None:
                    continue
                target_level, target_family = place(target)
                levels, extra = NARROWER.get(family, (range(level), []))
                if target_family != family and target_level not in levels and target not in extra:
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
        ("nn", "from mgjax import config", True),
        ("nn", "from mgjax.config import LMConfig", True),
        ("nn", "from mgjax import load", False),
        ("nn", "import mgjax.codec.conv", False),
        ("config", "import mgjax.nn", False),
        ("config", "from mgjax import sharding", False),
        ("codec.rvq", "from mgjax.codec import conv", True),
        ("codec.rvq", "from . import conv", True),
        ("codec.rvq", "from ..conditioning import t5", False),
        ("codec.rvq", "def f():\n    from mgjax.conditioning.t5 import T5Encoder", False),
        ("lm.model", "from mgjax.conditioning.condition import Condition", True),
        ("lm.model", "from mgjax.conditioning import t5", False),
        ("lm.model", "from mgjax.codec import rvq", False),
        ("checkpoint", "from mgjax.interop import huggingface", True),
        ("checkpoint", "from mgjax.data import pipeline", False),
        ("data.audio", "from mgjax.data import pipeline", False),
        ("cli.generate", "from mgjax import cli, api", True),
        ("cli.generate", "import mgjax", True),
        ("api", "from mgjax.cli import main", False),
        ("utils", "import numpy", False),
    ],
)
def test_the_check_itself(tmp_path, module, line, legal):
    package = tmp_path / "mgjax"
    paths = "config sharding nn codec/conv codec/rvq conditioning/condition conditioning/t5 lm/model checkpoint api"
    paths += " interop/torch_file interop/huggingface data/audio data/pipeline cli/__init__ cli/generate __init__"
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
