import shutil
from pathlib import Path

import pytest
from tiny_transformers import musicgen, save


@pytest.fixture(scope="session")
def model():
    return musicgen()


@pytest.fixture(scope="session")
def saved(model, tmp_path_factory):
    """The directory of `model`; not to be changed."""
    return save(model, tmp_path_factory.mktemp("musicgen") / "model")


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of `saved` that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "model"))
