"""On a GPU: the literal algorithm, its kernels, checkpointing, resuming, generation."""

from dataclasses import replace

import pytest
import torch

import focusft
from focusft.evaluation.generation import LocalGenerator, encode
from focusft.training.checkpointing import checkpoint_selectively, keep_attention
from tests.evaluation.test_generation import TEXTS, ask, complete, naive_greedy, text_of, tiny
from tests.method.helpers import (
    CONFIG,
    DOCUMENTS,
    MULTI_TURN,
    SINGLE_TURN,
    compare,
    double_model,
    packed,
    padded,
    relative_error,
)
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.training.test_trainer import losses, trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = "cuda"
# Heads of 32 features: the fused kernels take no smaller ones.
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
BATCH = padded([packed(DOCUMENTS[:2]), packed(DOCUMENTS[2:])], side="left")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("turns", [SINGLE_TURN, MULTI_TURN], ids=["single", "multi"])
def test_gradients_equal_the_literal_algorithm_on_the_cpu(family, steps, turns):
    config = replace(CONFIG, num_inner_steps=steps)
    loss, expected_loss, *_, error = compare(tiny_model(family), config, turns, device=DEVICE)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert error < 1e-5
    *_, error = compare(with_angles_of_the_cpu(double_model(family)), config, turns, device=DEVICE)
    assert error < 1e-9


def with_angles_of_the_cpu(model):
    """Its rotary positions come from the CPU: in float64 models too they are float32."""
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            original = module.forward

            def forward(x, position_ids, original=original):
                return tuple(part.to(x.device) for part in original(x.cpu(), position_ids.cpu()))

            module.forward = forward
    return model


def step(model, config, *, autocast=False, batch=BATCH):
    """Loss and gradients of one training step on the GPU."""
    engine = focusft.attach(model.to(DEVICE).train(), config)
    model.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        loss = model(**{name: tensor.to(DEVICE) for name, tensor in batch.items()}).loss
    loss.backward()
    engine.detach()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("backend", ["segments", "flex"])
@pytest.mark.parametrize("context", ["bidirectional", "causal"])
def test_backends_agree_in_float32(backend, context):
    model = tiny_model("qwen3", **WIDE)
    config = replace(CONFIG, context_attention=context)
    loss, gradients = step(model, replace(config, attention_backend=backend))
    oracle_loss, oracle = step(model, replace(config, attention_backend="dense"))
    torch.testing.assert_close(loss, oracle_loss, rtol=1e-5, atol=0)
    assert relative_error(gradients, oracle) < 1e-5


def test_cudnn_is_left_out_of_attention(monkeypatch):
    attend = torch.nn.functional.scaled_dot_product_attention
    enabled = []

    def watched(*arguments, **options):
        enabled.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    step(tiny_model("qwen3", **WIDE), CONFIG, autocast=True)
    assert enabled and not any(enabled)
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("backend", ["segments", "flex"])
def test_bfloat16_stays_near_float32(backend):
    config = replace(CONFIG, attention_backend=backend, inner_lr=0.05)
    _, exact = step(tiny_model("qwen3", **WIDE), config)
    _, rounded = step(tiny_model("qwen3", **WIDE), config, autocast=True)
    assert relative_error(rounded, exact) < 0.05


def with_nothing(model):
    pass


def with_everything(model):
    model.activation_checkpointing_enable({"use_reentrant": False})


def with_offload(model):
    model.activation_checkpointing_enable({"use_reentrant": False}, offload=True)


def with_all_but_attention(model):
    with_everything(model)
    keep_attention(model)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "prepare", [checkpoint_selectively, with_everything, with_all_but_attention, with_offload]
)
def test_checkpointing_changes_no_bit(prepare, autocast):
    results = []
    for preparation in (with_nothing, prepare):
        model = tiny_model("llama", **WIDE)
        preparation(model)
        results.append(step(model, CONFIG, autocast=autocast))
    (loss, gradients), (loss_again, gradients_again) = results
    assert torch.equal(loss, loss_again)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients_again[name]), name


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, bf16):
    options = {"use_cpu": False, "bf16": bf16}
    whole = trainer(tmp_path / "a", max_steps=4, **options)
    whole.train()
    first = trainer(tmp_path / "b", max_steps=4, save_strategy="steps", save_steps=2, **options)
    first.train()
    resumed = trainer(tmp_path / "b", max_steps=4, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert losses(resumed)[-2:] == losses(whole)[-2:]
    resumed_weights = dict(resumed.model.named_parameters())
    for name, weight in whole.model.named_parameters():
        assert weight.device.type == DEVICE
        assert torch.equal(weight, resumed_weights[name]), name


def test_training_follows_that_on_the_cpu(tmp_path):
    options = {"num_inner_steps": 0}  # a GPU draws other fast weights
    on_gpu = trainer(tmp_path / "a", use_cpu=False, **options)
    on_gpu.train()
    # A second trainer moves the device of the first, so it comes after.
    on_cpu = trainer(tmp_path / "b", **options)
    on_cpu.train()
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_batch_writes_what_each_prompt_alone_gets_on_the_cpu(family):
    tokenizer = tiny_tokenizer()
    prompts = [ask(text) for text in TEXTS]
    done = complete(LocalGenerator(tiny(family).to(DEVICE), tokenizer), prompts)
    for prompt, completion in zip(prompts, done, strict=True):
        ids = encode(tokenizer, prompt, chat=True)
        expected = naive_greedy(tiny(family), ids, prompt.max_new_tokens)
        assert completion.text == text_of(tokenizer, expected)
