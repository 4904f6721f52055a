"""Where the optional real data lie: beside the repository, never in it."""

from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    if not _SHARED.is_dir():
        pytest.skip("needs the optional real data in ../shared/data")
    return _SHARED
