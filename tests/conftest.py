"""Settings for every test: offline, one seed, deterministic kernels, few threads."""

import os
import shutil
import tempfile

# Before any import of transformers or datasets: no test reaches for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tokenised data of an earlier run, or of the user's, would be taken for that of this one.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="focusft-tests-")

# Processes of pytest-xdist share the cores; what they start does too.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))
# A few CUDA kernels have no deterministic form: the GPU tests use none of them knowingly.
torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    """An empty FOCUSFT_CACHE for this test alone."""
    folder = tmp_path / "focusft-cache"
    monkeypatch.setenv("FOCUSFT_CACHE", str(folder))
    return folder
