import pytest
from transformers import PreTrainedTokenizerBase

from tests.data.small_tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def chatml() -> PreTrainedTokenizerBase:
    """The small tokenizer with SmolLM2's template."""
    return make_tokenizer("smollm2")
