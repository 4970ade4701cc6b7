"""Settings for every test: offline, one seed, deterministic kernels, two threads."""

import os

# Before any import of transformers or datasets: no test reaches for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(min(2, os.cpu_count() or 1))
torch.use_deterministic_algorithms(True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    """An empty FOCUSFT_CACHE for this test alone."""
    folder = tmp_path / "focusft-cache"
    monkeypatch.setenv("FOCUSFT_CACHE", str(folder))
    return folder
