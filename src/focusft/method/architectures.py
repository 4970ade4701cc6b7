"""Where a model keeps what the inner loop runs again: top layers, final norm and head.

Every assumption made here is checked by replaying a forward pass when FocuSFT is attached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import is_peft_available

from focusft.errors import UnsupportedModelError
from focusft.method.config import FocusConfig
from focusft.method.sharding import is_sharded, unhooked

# The keyword under which each layer must hand the state of a call on to its attention.
CALL = "focus_call"
REPLAY_TOKENS = 8
REPLAY_TOLERANCE = 1e-4
PLAIN_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


@dataclass(frozen=True)
class Architecture:
    """The parts of a decoder-only model that the inner loop runs again.

    Attributes:
        model: The causal language model below any PEFT wrapper.
        decoder: The model without its head.
        layers: All decoder layers.
        first_adapted: Index of the first layer with fast weights; those below are the trunk.
        norm: The norm after the last layer.
        head: The output embeddings.
        targets: The linear maps that get fast weights, from the first adapted layer upwards.
        has_plain_layers: A layer is attention, then MLP, each with a norm before it and a
            residual around it, so that the two can run one without the other.
    """

    model: PreTrainedModel
    decoder: nn.Module
    layers: nn.ModuleList
    first_adapted: int
    norm: nn.Module
    head: nn.Module
    targets: tuple[nn.Module, ...]
    has_plain_layers: bool = False

    @property
    def adapted_layers(self) -> list[nn.Module]:
        """The layers with fast weights."""
        return list(self.layers)[self.first_adapted :]

    @property
    def trunk(self) -> list[nn.Module]:
        """The layers below the first one with fast weights."""
        return list(self.layers)[: self.first_adapted]

    @property
    def attentions(self) -> list[nn.Module]:
        """The attention of each layer."""
        return [dict(layer.named_children())["self_attn"] for layer in self.layers]

    @property
    def adapts_attention(self) -> bool:
        """True when fast weights sit inside attention."""
        inside = {module for attention in self.attentions for module in attention.modules()}
        return any(target in inside for target in self.targets)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(input features, output features) of each adapted linear map."""
        return [_features(module) for module in self.targets]

    def logits(self, hidden: Tensor) -> Tensor:
        """The head with the scaling and the soft-cap of the model, [.., D] to [.., V]."""
        logits = unhooked(self.head)(hidden)
        settings = self.model.config.get_text_config(decoder=True).to_dict()
        if settings.get("logits_scaling"):  # Granite
            logits = logits / settings["logits_scaling"]
        if settings.get("logit_scale"):  # Cohere
            logits = logits * settings["logit_scale"]
        soft_cap = settings.get("final_logit_softcapping")  # Gemma 2 and 3
        if soft_cap:
            logits = soft_cap * torch.tanh(logits / soft_cap)
        return logits


def attention_part(layer: Any, hidden_BSD: Tensor, layer_kwargs: dict[str, Any]) -> Tensor:
    """The first half of a plain layer, with its residual."""
    normed_BSD = layer.input_layernorm(hidden_BSD)
    attended_BSD, _ = layer.self_attn(hidden_states=normed_BSD, **layer_kwargs)
    return hidden_BSD + attended_BSD


def mlp_part(layer: Any, hidden: Tensor) -> Tensor:
    """The second half of a plain layer, with its residual."""
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def read_architecture(model: nn.Module, config: FocusConfig) -> Architecture:
    """Find the parts of a model, possibly inside a PEFT wrapper.

    Raises:
        UnsupportedModelError: The model has a part that the method does not cover.
    """
    causal_lm = unwrap_causal_lm(model)
    _refuse_unsupported(causal_lm)
    decoder = causal_lm.get_decoder()
    children = dict(decoder.named_children())
    layers = children.get("layers")
    # Phi calls it final_layernorm.
    norm = children.get("norm", children.get("final_layernorm"))
    head = causal_lm.get_output_embeddings()
    if not isinstance(layers, nn.ModuleList) or norm is None or head is None:
        raise UnsupportedModelError(
            f"{type(causal_lm).__name__} keeps its layers, norm or head elsewhere than Llama-like "
            "models do; FocuSFT needs decoder.layers, decoder.norm and an output embedding"
        )
    # The published rule, int(L * (1 - fraction)), with one layer adapted at the least.
    first_adapted = min(int(len(layers) * (1.0 - config.inner_layer_fraction)), len(layers) - 1)
    for index, layer in enumerate(layers):
        if "self_attn" not in dict(layer.named_children()):
            raise UnsupportedModelError(
                f"{type(causal_lm).__name__}: layer {index} ({type(layer).__name__}) has "
                "no self_attn; use a model whose layers are attention and MLP, as Llama's are"
            )
    targets: list[nn.Module] = []
    for index in range(first_adapted, len(layers)):
        targets.extend(_targets(layers[index], index, config.target_modules))
    return Architecture(causal_lm, decoder, layers, first_adapted, norm, head, tuple(targets))


def unwrap_causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, without PEFT around it.

    Raises:
        UnsupportedModelError: It is no decoder-only transformers model.
    """
    if is_peft_available():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            if model.active_peft_config.is_prompt_learning:
                raise UnsupportedModelError(
                    f"{model.active_peft_config.peft_type.value} puts tokens of its own before "
                    "each document, which have no turn; use LoRA or another adapter of weights"
                )
            model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a transformers model; attach FocuSFT before the model "
            "is wrapped by DDP or FSDP"
        )
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a decoder-only language model; load it with "
            "AutoModelForCausalLM"
        )
    return model


def _refuse_unsupported(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if has_sliding_window(model.config):
        raise UnsupportedModelError(
            f"{name} has layers without full attention (sliding window, chunked or linear), where "
            "the bidirectional context mask is not defined; use a model with full attention only"
        )
    if any("experts" in child for child, _ in model.named_modules()):
        raise UnsupportedModelError(
            f"{name} is a mixture of experts, whose fused expert weights cannot carry fast "
            "weights; use a dense model"
        )
    if is_sharded(model):
        raise UnsupportedModelError(
            f"{name} has sharded parameters: attach FocuSFT before fully_shard (FSDP2); tensor "
            "parallelism is not supported"
        )
    if any("ds_id" in vars(parameter) for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"{name} is partitioned by DeepSpeed ZeRO-3, which the inner loop cannot gather; "
            "use ZeRO-2, DDP or FSDP2"
        )


def has_sliding_window(config: PreTrainedConfig) -> bool:
    """Tell whether any layer attends to a window of the sequence only."""
    settings = config.get_text_config(decoder=True).to_dict()
    layer_types = settings.get("layer_types")
    if layer_types is not None:
        return any(layer_type != "full_attention" for layer_type in layer_types)
    return settings.get("sliding_window") is not None


def _targets(layer: nn.Module, index: int, names: tuple[str, ...]) -> Iterator[nn.Module]:
    found = {name: _linear_maps(layer, name) for name in names}
    for name, modules in found.items():
        if len(modules) != 1:
            available = sorted(
                {path.rsplit(".", 1)[-1] for path, m in layer.named_modules() if _is_linear(m)}
                - {"base_layer", "default"}
            )
            raise UnsupportedModelError(
                f"inner_target_modules: layer {index} ({type(layer).__name__}) has "
                f"{len(modules)} linear maps named {name!r}, FocuSFT needs one; it has "
                f"{', '.join(available)}"
            )
        yield modules[0]


def _linear_maps(layer: nn.Module, name: str) -> list[nn.Module]:
    return [
        module
        for path, module in layer.named_modules()
        if path.rsplit(".", 1)[-1] == name and _is_linear(module)
    ]


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    if is_peft_available():
        from peft.tuners.tuners_utils import BaseTunerLayer

        return isinstance(module, BaseTunerLayer)
    return False


def _features(module: Any) -> tuple[int, int]:
    return int(module.in_features), int(module.out_features)


def check_replay(architecture: Architecture) -> Architecture:
    """Run a few tokens through the stock forward and through the parts, and compare.

    Returns:
        The architecture with `has_plain_layers` set where the comparison shows it.

    Raises:
        UnsupportedModelError: The parts do not reproduce the model's logits, or its attention
            does not get what the layers are called with.
    """
    model = architecture.model
    name = type(model).__name__
    captured: dict[str, Any] = {}
    attention_kwargs: list[dict[str, Any]] = []

    def capture(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        captured["hidden"] = args[0] if args else kwargs["hidden_states"]
        captured["kwargs"] = {k: v for k, v in kwargs.items() if k != "hidden_states"}

    def capture_attention(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        attention_kwargs.append(kwargs)

    first_layer = architecture.adapted_layers[0]
    handles = [first_layer.register_forward_pre_hook(capture, with_kwargs=True)]
    for attention in architecture.attentions:
        handles.append(attention.register_forward_pre_hook(capture_attention, with_kwargs=True))
    # A part may be in eval mode on purpose, inside a model in training mode.
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            device = model.device
            tokens_1S = torch.arange(1, REPLAY_TOKENS + 1, device=device)[None]
            logits_1SV = model(input_ids=tokens_1S, use_cache=False, **{CALL: None}).logits
            for handle in handles:
                handle.remove()
            if not all({CALL, "attention_mask"} <= kwargs.keys() for kwargs in attention_kwargs):
                raise UnsupportedModelError(
                    f"{name}: its layers do not hand keyword arguments on to their attention, "
                    "which FocuSFT needs; use another model family"
                )
            hidden = captured["hidden"]
            for layer in architecture.adapted_layers:
                before_last_layer = hidden
                hidden = layer(hidden, **captured["kwargs"])
                if not isinstance(hidden, Tensor):
                    raise UnsupportedModelError(
                        f"{name}: {type(layer).__name__} returns more than its hidden states; "
                        "this architecture needs code of its own"
                    )
            replayed_1SV = architecture.logits(architecture.norm(hidden))
            is_plain = _is_plain(before_last_layer, hidden, layer, captured["kwargs"])
    finally:
        for handle in handles:
            handle.remove()
        for module, training in was_training.items():
            module.training = training
    largest = logits_1SV.abs().max().item()
    difference = (logits_1SV - replayed_1SV).abs().max().item()
    if not difference <= REPLAY_TOLERANCE * max(largest, 1.0):
        raise UnsupportedModelError(
            f"{name}: layers, norm and head run one by one give other logits than its own "
            f"forward (largest difference {difference:.2g}); this architecture needs code of "
            "its own"
        )
    return replace(architecture, has_plain_layers=is_plain)


def _is_plain(
    input_1SD: Tensor, output_1SD: Tensor, layer: nn.Module, layer_kwargs: dict[str, Any]
) -> bool:
    if {name for name, _ in layer.named_children()} != PLAIN_PARTS:
        return False
    replayed_1SD = mlp_part(layer, attention_part(layer, input_1SD, layer_kwargs))
    # Granite has the same parts, but scales the residuals.
    return torch.allclose(replayed_1SD, output_1SD, rtol=REPLAY_TOLERANCE, atol=REPLAY_TOLERANCE)
