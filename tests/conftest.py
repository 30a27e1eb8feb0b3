import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the data sets ``emoji`` and ``flickr8k``."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BLINDSIGHT_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder}; set BLINDSIGHT_SHARED_DATA to its folder")
    return folder
