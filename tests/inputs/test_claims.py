"""One run at a time in a folder."""

import pytest

from mgjax.inputs.claims import claimed


def test_the_second_run_is_kept_out(tmp_path):
    with claimed(tmp_path / "new"):
        with pytest.raises(FileExistsError, match="new: another run is at work in it"), claimed(tmp_path / "new"):
            pass
        with claimed(tmp_path / "other"):
            pass
    with claimed(tmp_path / "new"):
        pass
    assert list((tmp_path / "new").iterdir()) == []
