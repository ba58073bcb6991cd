"""Which files come from the Hub, and what is said when they cannot; the Hub itself is made up."""

import types

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from mgjax.checkpoints import hub
from mgjax.checkpoints.files.torch_file import CheckpointError

TOKENIZER = ["spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
COMMON = ["config.json", "generation_config.json", "preprocessor_config.json", *TOKENIZER]
REST = ["README.md", ".gitattributes", "flax_model.msgpack", "tf_model.h5", "assets/a.wav"]
ORIGINALS = ["state_dict.bin", "compression_state_dict.bin"]
MEDIUM_SHARDS = ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
SHARDS = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]

REPOSITORIES = {
    "small": (["model.safetensors", "pytorch_model.bin", *ORIGINALS], ["model.safetensors"]),
    "medium": (["pytorch_model.bin", *ORIGINALS], ["pytorch_model.bin"]),
    "large": ([*MEDIUM_SHARDS, *ORIGINALS], MEDIUM_SHARDS),
    "melody": ([*SHARDS, *MEDIUM_SHARDS, *ORIGINALS], SHARDS),
    "variants": (["model.safetensors", "model.fp32.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
    "dangling": (["model.safetensors.index.fp32.json", "model.safetensors", *ORIGINALS], ["model.safetensors"]),
    "shard-missing": ([*SHARDS[:2], "pytorch_model.bin"], ["pytorch_model.bin"]),
    "index-only": ([SHARDS[0], *ORIGINALS], ORIGINALS),
    "original": (ORIGINALS, ORIGINALS),
    "with-clap": (
        ["model.safetensors", "vocab.json", "merges.txt", "clap/tokenizer.json", "clap/model.safetensors"],
        ["vocab.json", "merges.txt", "clap/tokenizer.json", "model.safetensors"],
    ),
    "variant-only": (["model.fp32.safetensors"], ["model.fp32.safetensors"]),
}


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """A Hub with the files given to it, or that fails with an error; the calls to it are recorded."""

    def make(files=(), error=None, cached=False):
        calls = []

        def list_repo_files(source):
            calls.append(("list", source))
            if error:
                raise error
            return list(files)

        def snapshot_download(source, allow_patterns=None, local_files_only=False):
            calls.append(("download", source, allow_patterns, local_files_only))
            if local_files_only and not cached:
                raise LocalEntryNotFoundError("not there")
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return make


@pytest.mark.parametrize("name", REPOSITORIES)
def test_only_what_is_needed(made_up, tmp_path, name):
    files, weights = REPOSITORIES[name]
    calls = made_up([*REST, *COMMON, *files])
    assert hub.fetch(f"facebook/{name}") == tmp_path
    (_, _, patterns, _) = calls[1]
    assert sorted(patterns) == sorted([*COMMON, *weights])


def test_patterns_given(made_up):
    calls = made_up([*COMMON, "model.safetensors"])
    hub.fetch("facebook/small", allow=["*.json"])
    assert calls[1][2] == ["*.json"]


def test_no_weights(made_up):
    made_up([*COMMON, "flax_model.msgpack"])
    with pytest.raises(CheckpointError, match="a/b: this repository holds no weights"):
        hub.fetch("a/b")


def test_folders(made_up, tmp_path, monkeypatch):
    calls = made_up()
    assert hub.fetch(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert hub.fetch(f"~/{tmp_path.name}") == tmp_path
    for source in ("/no/such/folder", "./here", "a/b/c", "", "a b"):
        with pytest.raises(CheckpointError, match="no such folder"):
            hub.fetch(source)
    assert not calls


RESPONSE = types.SimpleNamespace(headers={}, request=None)


class ConnectError(HfHubHTTPError.__bases__[0]):
    """As of the libraries that the Hub's has used for its requests: an error of their own, not the system's."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError("none", response=RESPONSE), "neither a folder here nor a model on the Hub"),
        (GatedRepoError("gated", response=RESPONSE), "access on request only"),
        (OfflineModeIsEnabled("offline"), "OfflineModeIsEnabled.*no copy from before"),
        (ConnectError("no network"), r"ConnectError: no network\) and no copy from before"),
        (TimeoutError("slow"), "TimeoutError"),
    ],
)
def test_one_clear_sentence(made_up, error, message):
    made_up(error=error)
    with pytest.raises(CheckpointError, match=f"^t5-base: .*{message}"):
        hub.fetch("t5-base")


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("offline"), ConnectError("no network")])
def test_a_copy_from_before_is_used_offline(made_up, tmp_path, error):
    calls = made_up(error=error, cached=True)
    assert hub.fetch("t5-base") == tmp_path
    assert calls[-1] == ("download", "t5-base", None, True)


def test_offline_for_real():
    """The tests run with HF_HUB_OFFLINE set: the library's own error is understood."""
    with pytest.raises(CheckpointError, match=r"mgjax/no-such-model: could not be fetched.*HF_HUB_OFFLINE"):
        hub.fetch("mgjax/no-such-model")
