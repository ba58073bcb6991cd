"""Public names, keywords, options and settings: more may come, none of those of before may go."""

import inspect
import json

import numpy as np
import pytest
from doors import EXPECTED, MODELS, command_line, flattened, options, script

import mgjax

NAMES = json.loads(EXPECTED.read_text())["names"]
# Settings that are to get other names, under which the old ones are still accepted: the mesh of devices.
MOVED = ("loop.data", "loop.fsdp", "loop.model")

# Keywords that have other names now, and are taken by the old ones too: see test_every_keyword_is_accepted.
RENAMED = {"texts": "prompts"}


def keywords(function):
    """The names that a function can be given."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        parameters = inspect.signature(mgjax.MusicGen.stream_codes).parameters.values()
    return [parameter.name for parameter in parameters if parameter.name != "self"]


def test_names_of_the_package():
    assert set(NAMES["mgjax"]) <= set(mgjax.__all__)
    for name in NAMES["mgjax"]:
        assert getattr(mgjax, name) is not None


@pytest.mark.parametrize("name", NAMES["methods"])
def test_keywords_of_methods(name):
    owner = mgjax.Codec if name in ("encode", "decode") else mgjax.MusicGen
    before = [RENAMED.get(keyword, keyword) for keyword in NAMES["methods"][name]]
    assert set(before) <= set(keywords(getattr(owner, name)))
    # What stands first may be given without its name.
    assert keywords(getattr(owner, name))[0] == before[0]


@pytest.mark.parametrize("name", NAMES["functions"])
def test_keywords_of_functions(name):
    assert set(NAMES["functions"][name]) <= set(keywords(getattr(mgjax, name)))
    assert keywords(getattr(mgjax, name))[0] == "source"


def test_attributes():
    for owner, names in NAMES["attributes"].items():
        for name in names:
            assert hasattr(getattr(mgjax, owner), name), f"{owner}.{name}"


def test_fields_of_sampling():
    found = {field.name: field.default for field in mgjax.Sampling.__dataclass_fields__.values()}
    assert NAMES["Sampling"].items() <= found.items()


def test_every_keyword_is_accepted():
    """By a real call: those of today, with the values that they have where they are left out."""
    model = mgjax.load(MODELS / "text")
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(model.stream_codes).parameters.items()
        if parameter.default is not parameter.empty
    }
    asked = {name: defaults[name] for name in NAMES["methods"]["stream_codes"][1:]} | {"seconds": 0.1}
    for method in (model.stream_codes, model.stream, model.generate, model.generate_codes):
        assert next(iter(method(texts="slow waltz", seconds=0.1))).size > 0
    codes = model.generate_codes("slow waltz", **asked)
    assert codes.shape == (1, 5, 4)
    np.testing.assert_array_equal(model.logits(codes, texts="slow waltz"), model.logits(codes, "slow waltz"))
    model.stream("slow waltz", **asked)
    model.generate("slow waltz", **asked)
    scored = {name: defaults[name] for name in NAMES["methods"]["logits"][2:]}
    assert model.logits(codes, "slow waltz", **scored).shape == (1, 5, 4, 16)
    with pytest.raises(TypeError):
        model.generate("slow waltz", no_such_keyword=1)


COMMANDS = options(command_line())


@pytest.mark.parametrize("command", NAMES["command line"])
def test_options_of_commands(command):
    """Each takes as much as before, and means the same where it is left out."""
    known, found = NAMES["command line"][command], COMMANDS[command]
    positional = [[option for option in some if not option["names"]] for some in (known, found)]
    assert len(positional[0]) == len(positional[1])
    for before in [option for option in known if option["names"]]:
        for name in before["names"]:
            assert any(name in option["names"] for option in found), f"{command} {name}"
        now = next(option for option in found if before["names"][0] in option["names"])
        assert [now[key] for key in ("nargs", "required", "default")] == [
            before[key] for key in ("nargs", "required", "default")
        ], (command, before["names"])
        assert set(before["choices"] or ()) <= set(now["choices"] or ()) or not now["choices"], before["names"]
    for before, now in zip(*positional, strict=True):
        assert before["nargs"] == now["nargs"]


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in NAMES["settings"] for name in NAMES["settings"][kind]]
)
def test_settings_of_runs(kind, name):
    found = flattened(script(f"configs/{kind}.py").get_config(name))
    for path, value in NAMES["settings"][kind][name].items():
        if path not in MOVED:
            assert path in found, path
            assert found[path] == value, path
