"""Apple's GPUs have no float64: tensors go to the CPU before they become it."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from focusft.analysis.dilution import measure_documents, probing
from focusft.data import ConversationCollator
from tests.tiny_models import tiny_model
from tests.training.test_trainer import dataset, trainer


class AppleDevice(TorchFunctionMode):
    """Takes tensors for those of an Apple GPU until they are sent to the CPU."""

    def __init__(self):
        super().__init__()
        self.on_cpu = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_made = kwargs.get("dtype") is torch.float64 and "device" in kwargs
        is_cast = function is torch.Tensor.double and all(args[0] is not t for t in self.on_cpu)
        if is_made or is_cast:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        result = function(*args, **kwargs)
        if function is torch.Tensor.cpu:
            self.on_cpu.append(result)
        return result


def test_the_device_has_no_float64():
    with AppleDevice():
        with pytest.raises(TypeError, match="float64"):
            torch.ones(1).double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(1, dtype=torch.float64, device="cpu")
        assert torch.ones(1).cpu().double() == 1


def test_validation_sums_on_the_cpu(tmp_path):
    run = trainer(tmp_path, probe_steps=0)
    expected = run.evaluate()["eval_loss"]
    with AppleDevice():
        assert run.evaluate()["eval_loss"] == expected


def test_attention_figures_are_float64_on_the_cpu():
    batch = ConversationCollator(0)(list(dataset(2)))
    with probing(tiny_model("llama")) as probed, AppleDevice():
        measured = measure_documents(probed, batch, "causal")
    assert measured[0].response.figures_LHF.dtype is torch.float64
