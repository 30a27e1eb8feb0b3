import os
from pathlib import Path

import pytest

# Before torch or faiss is imported: workers of pytest-xdist have the cores already, and the tiny
# tensors of tests cost more in threads that wait for each other than in one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the data sets ``emoji`` and ``flickr8k``."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BLINDSIGHT_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder}; set BLINDSIGHT_SHARED_DATA to its folder")
    return folder
