"""Models that go on from prompts: what they get, what they give back, and one on this machine."""

from focusft.evaluation.generation.interface import Completion, Generator
from focusft.evaluation.generation.local import LocalGenerator, Prefill
from focusft.evaluation.generation.model_facts import weights_fingerprint
from focusft.evaluation.generation.prompts import Message, Prompt, encode, render
from focusft.evaluation.sampling import Sampling

__all__ = [
    "Completion",
    "Generator",
    "LocalGenerator",
    "Message",
    "Prefill",
    "Prompt",
    "Sampling",
    "encode",
    "render",
    "weights_fingerprint",
]
