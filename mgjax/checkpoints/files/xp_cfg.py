"""Reads `xp.cfg`, the YAML config of an audiocraft run, within limits, and resolves its references."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mgjax.errors import CheckpointError
from mgjax.inputs import files

# The published models have some 400 values in 10 kB.
_LONGEST = 256 << 10  # characters
_MOST_VALUES = 5_000


class _Loader(yaml.SafeLoader):
    """YAML within limits, and without aliases, a few of which could expand to more than the memory."""

    num_nodes = depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.num_nodes, self.depth = self.num_nodes + 1, self.depth + 1
        if self.num_nodes > _MOST_VALUES or self.depth > files.DEEPEST or self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"more than {_MOST_VALUES} values or {files.DEEPEST} levels, or aliases such as *name")
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:int" and len(node.value) > 18:
            raise yaml.YAMLError(f"the integer {node.value[:18]}... has more than 18 digits")
        self.depth -= 1
        return node


def parse(path: Path, text: Any) -> dict[str, Any]:
    """The config of a run from the text of its xp.cfg; CheckpointError if it is no YAML mapping or too large."""
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise CheckpointError(f"{path}: its xp.cfg is not a text of at most {_LONGEST} characters")
    try:
        run = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:  # of scalars of wrong tags
        raise CheckpointError(f"{path}: its xp.cfg is not YAML that audiocraft writes ({error})") from None
    if not isinstance(run, dict):
        raise CheckpointError(f"{path}: its xp.cfg should be a YAML mapping")
    return _resolved(run, run)


def _resolved(value: Any, root: Any) -> Any:
    """`value` with references ("${sample_rate}") replaced, except within replacements, which could multiply."""
    if isinstance(value, dict):
        return {key: _resolved(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, root) for item in value]
    for _ in range(10):
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        value = at(root, reference[1], value) if reference else value
    return value


def at(values: Any, path: str, default: Any = None) -> Any:
    """The value at a dotted path, or `default` where there is none."""
    for key in path.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return default
        values = values[key]
    return values
