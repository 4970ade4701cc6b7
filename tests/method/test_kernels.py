import pytest
import torch

from focusft.method.kernels import without_cudnn_attention


@pytest.fixture(params=[True, False], ids=["enabled", "disabled"])
def was_enabled(request):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    yield request.param
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_cudnn_is_out_on_a_gpu_alone_and_comes_back(was_enabled):
    with without_cudnn_attention(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == was_enabled
    with without_cudnn_attention(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled() == was_enabled


def test_cudnn_comes_back_after_an_error(was_enabled):
    with pytest.raises(ZeroDivisionError), without_cudnn_attention(torch.device("cuda")):
        raise ZeroDivisionError
    assert torch.backends.cuda.cudnn_sdp_enabled() == was_enabled
