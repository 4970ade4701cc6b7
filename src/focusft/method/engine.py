"""FocuSFT inside the stock forward of a model: read this file first.

One training step (arXiv 2605.09932, algorithm 1), for the documents of a batch:

    phi_0      fresh LoRA fast weights: A random, B zero
    phi_{k+1}  = phi_k - eta * clip(grad of the inner loss at phi_k)       k = 0 .. K-1
    loss       = cross-entropy of the response tokens with phi_K active
    afterwards the fast weights are thrown away

The trunk (the layers below the first one with fast weights) does not depend on phi, so it runs
once: a hook on the first adapted layer takes the trunk's output, adapts the fast weights by
running only the layers above it, and lets the stock forward go on with phi_K active.

What belongs to one forward call travels in a `FocusCall` through the keyword arguments of the
layers. So it is there again when a checkpointed layer is recomputed in the backward pass, and
several forward calls may precede one backward pass.

Shapes: B batch, S sequence, D hidden, R rows that predict a labelled token, G documents.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from focusft.errors import UnsupportedModelError, UserError
from focusft.method.architectures import CALL, Architecture, check_replay, read_architecture
from focusft.method.attention import (
    ATTENTION,
    TurnAttention,
    check_mask_arrived,
    install_backend,
    turn_attention,
)
from focusft.method.call import FocusCall
from focusft.method.config import ContextAttention, FocusConfig
from focusft.method.fast_weights import FastWeights, initial_fast_weights
from focusft.method.frozen import frozen
from focusft.method.inner_loop import STEP_MENDS, InnerTrace, adapt, check_finite
from focusft.method.last_layer import LastLayerRows
from focusft.method.loss import PredictedRows, token_losses
from focusft.method.mask_check import check_masking
from focusft.method.objectives import inner_targets
from focusft.method.packed_sft import keep_documents_apart
from focusft.method.refusals import (
    refuse_labelled_context,
    refuse_lossy_checkpointing,
    refuse_recorded_states,
)
from focusft.method.sharding import check_wrapping, gather, gathered, keep_gathered, unhooked
from focusft.method.top_layers import prepare_top_layers
from focusft.method.turns import TurnLayout

# Decoders that carry the hooks of an engine: a second engine would adapt on top of the first.
_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def attach(model: nn.Module, config: FocusConfig | None = None) -> FocusEngine:
    """Make the training forward of a model run FocuSFT.

    In training mode, a call with `labels` adapts fast weights on each document of the batch and
    returns the outer loss with them active; `logits` are empty then, [B, 0, V]. Calls in eval
    mode or without labels are those of the stock model. With `num_inner_steps=0` and causal
    context every call is: that is plain SFT.

    The turns come from the labels (runs of -100 are context), or from `turn_ids` in the batch
    (see `TurnLayout.from_turn_ids`); documents of a packed row from `position_ids`.

    Args:
        model: A decoder-only transformers model, possibly with PEFT adapters, not yet wrapped
            by DDP or FSDP.
        config: Options of the method; the published settings by default.

    Returns:
        The engine, with `.trace` and `.detach()`.

    Raises:
        UnsupportedModelError: The model has a part that the method does not cover.
        UserError: FocuSFT is attached to the model already.
    """
    return FocusEngine(model, config or FocusConfig())


class FocusEngine:
    """The hooks of FocuSFT on one model.

    Attributes:
        config: Options of the method.
        attention_backend: "segments", "flex" or "dense"; "stock" for plain SFT in the model's own
            forward.
        step: Number of the optimizer step; changes the initial fast weights. A trainer sets it
            before each step, so that a resumed run draws the same ones.
        trace: What the inner loop did in the last training call.
        stops_on_non_finite: Raise `NonFiniteLossError`. Set it to False where processes share
            gradients: one that raises leaves the others waiting, and all see the gradients' norm.
        checkpoints_inner_attention: Where layers are checkpointed, so are their attentions in the
            inner loop. Set it to False where a checkpointed layer keeps the outputs of its matrix
            products: what attention keeps takes no more memory, and nothing of it runs again.
    """

    def __init__(
        self, model: nn.Module, config: FocusConfig, *, keep_plain_sft_stock: bool = True
    ) -> None:
        """Attach to the model; see `attach`.

        Args:
            model: As for `attach`.
            config: Options of the method.
            keep_plain_sft_stock: Where K = 0 and context is causal, leave the model's forward
                alone. Without it, plain SFT too goes turn by turn and computes the logits of
                response rows only.
        """
        self.config = config
        self.step = 0
        self.trace: InnerTrace | None = None
        self.stops_on_non_finite = True
        self.checkpoints_inner_attention = True
        # Weak, since a recompute in the backward pass names a call that nothing takes back.
        self._active: weakref.ref[FocusCall] | None = None
        self._handles: list[RemovableHandle] = []
        self.attention_backend = "stock"
        if config.is_plain_sft and keep_plain_sft_stock:
            add = model.register_forward_pre_hook
            self._handles.append(add(keep_documents_apart, with_kwargs=True))
            return
        self._architecture = read_architecture(model, config)
        if self._architecture.decoder in _attached:
            raise UserError(
                "attach: FocuSFT is attached to this model already; call detach() on the first "
                "engine before you attach another"
            )
        model_below = self._architecture.model
        self._stock_implementation = model_below.config._attn_implementation
        self.attention_backend = install_backend(model_below, config.attention_backend)
        try:
            self._architecture = check_replay(self._architecture)
            check_masking(model_below, config.context_attention)
        except Exception as error:
            model_below.set_attn_implementation(self._stock_implementation)
            if isinstance(error, UserError):
                raise
            raise UnsupportedModelError(
                f"{type(model_below).__name__}: its forward fails with FocuSFT's attention "
                f"({error}); use another model family"
            ) from error
        self._add_hooks(model, self._architecture)

    @property
    def first_adapted_layer(self) -> nn.Module:
        """The layer before which the inner loop runs; "stock" plain SFT has none."""
        return self._architecture.adapted_layers[0]

    def detach(self) -> None:
        """Remove every hook: the model is what it was before."""
        if self._handles and self.attention_backend != "stock":
            _attached.discard(self._architecture.decoder)
            self._architecture.model.set_attn_implementation(self._stock_implementation)
        while self._handles:
            self._handles.pop().remove()
        self._active = None

    def _add_hooks(self, model: nn.Module, parts: Architecture) -> None:
        add = self._handles.append
        _attached.add(parts.decoder)
        # Code that torch.compile made for a layer without hooks must not serve one with hooks.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        add(model.register_forward_pre_hook(self._begin_call, with_kwargs=True))
        add(parts.decoder.register_forward_hook(self._compute_loss, with_kwargs=True))
        add(model.register_forward_hook(self._return_loss, with_kwargs=True))
        for attention in parts.attentions:
            add(attention.register_forward_pre_hook(self._activate_call, with_kwargs=True))
        if parts.has_plain_layers:
            last = dict(parts.layers[-1].named_children())
            add(last["self_attn"].register_forward_pre_hook(self._cut_queries, with_kwargs=True))
            add(last["mlp"].register_forward_pre_hook(self._take_rows))
            add(last["mlp"].register_forward_hook(self._put_rows_back))
        if self.config.num_inner_steps == 0:
            return
        if not self.config.has_one_mask:
            first_layer = parts.layers[0]
            add(first_layer.register_forward_pre_hook(self._keep_trunk_input, with_kwargs=True))
        first_adapted = parts.adapted_layers[0]
        add(first_adapted.register_forward_pre_hook(self._adapt_fast_weights, with_kwargs=True))
        for index, target in enumerate(parts.targets):
            add(target.register_forward_hook(partial(self._add_fast_weights, index)))

    # The hooks, in the order in which one forward meets them.

    def _begin_call(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Read the turns, build the mask, keep the labels for `_compute_loss`."""
        turn_ids_BS = kwargs.pop("turn_ids", None)
        if not model.training or kwargs.get("labels") is None:
            return args, kwargs
        if args or kwargs.get("input_ids") is None:
            raise UserError(
                "model(...): FocuSFT reads its batch from keyword arguments; call "
                "model(input_ids=..., attention_mask=..., labels=...)"
            )
        check_wrapping(model, self._architecture.layers, self.config.inner_order)
        refuse_lossy_checkpointing(self._architecture, self.config)
        refuse_recorded_states(self._architecture, self.config, kwargs)
        layout = TurnLayout.from_batch(
            {**kwargs, "turn_ids": turn_ids_BS}, self.config.context_blocks
        )
        refuse_labelled_context(layout, kwargs["labels"], self.config)
        labels_BS = kwargs.pop("labels")
        call = FocusCall(
            input_ids_BS=kwargs["input_ids"],
            labels_BS=labels_BS,
            rows=PredictedRows.of(labels_BS, layout),
            layout=layout,
            normaliser=kwargs.pop("num_items_in_batch", None),
            context_attention=self.config.outer_attention(self.step),
        )
        attention = self._attention(layout, call.context_attention)
        call.last_layer = _last_layer_rows(call.rows, attention)
        # The loss comes from `_compute_loss`; the stock forward makes no logits.
        no_positions = torch.empty(0, dtype=torch.long, device=labels_BS.device)
        kwargs |= {"use_cache": False, "logits_to_keep": no_positions, CALL: call}
        kwargs |= attention.model_kwargs
        return args, kwargs

    def _keep_trunk_input(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Keep what enters the first layer, for an inner loop with a mask of its own."""
        call = kwargs.get(CALL)
        if call is None or call.is_adapting:
            return
        if call.context_attention != self.config.inner_attention:
            call.trunk_input = _split_hidden(args, kwargs)

    def _adapt_fast_weights(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """The inner loop, run once the trunk's output is there."""
        call = kwargs.get(CALL)
        if call is None or call.is_adapting:
            return
        config, layout = self.config, call.layout
        trunk_BSD, layer_kwargs = _split_hidden(args, kwargs)
        call.is_adapting = True
        parts = self._architecture
        modules = [*parts.adapted_layers, parts.norm, parts.head]
        gather(modules)
        if config.inner_order == 2:
            context: AbstractContextManager[Any] = sdpa_kernel(SDPBackend.MATH)
        else:
            context = frozen(modules)
        with torch.enable_grad(), context:
            if call.trunk_input is not None:
                trunk_BSD, layer_kwargs = self._inner_trunk(call, call.trunk_input)
                call.trunk_input = None
            if config.inner_order == 1:
                trunk_BSD = trunk_BSD.detach()
            targets_BS = inner_targets(
                config.inner_objective, call.input_ids_BS, call.labels_BS, layout
            )
            rows = call.inner_rows = PredictedRows.of(targets_BS, layout)
            outer_rows, call.last_layer = (
                call.last_layer,
                _last_layer_rows(rows, layer_kwargs[ATTENTION]),
            )

            initial = initial_fast_weights(
                parts.shapes,
                rank=config.inner_rank,
                alpha=config.inner_alpha,
                dropout=config.inner_dropout,
                input_ids_BS=call.input_ids_BS,
                layout=layout,
                seed=config.seed,
                step=self.step,
                # Steps in bfloat16 would be rounded away.
                dtype=torch.promote_types(parts.model.dtype, torch.float32),
            )
            run_top_layers = prepare_top_layers(
                parts,
                trunk_BSD,
                rows.mask_BS,
                layer_kwargs,
                keep_history=config.inner_order == 2,
                checkpoint_attention=self.checkpoints_inner_attention,
            )

            def inner_losses(weights: FastWeights) -> Tensor:
                call.fast_weights = weights
                losses_R = token_losses(run_top_layers(), rows.targets_R, parts.logits)
                return rows.mean_of_each_document(losses_R)

            has_targets_G = rows.per_document_G > 0
            call.fast_weights, call.trace = adapt(initial, inner_losses, has_targets_G, config)
        call.last_layer = outer_rows
        # Weights that autocast has cast without a history must not serve the outer forward.
        torch.clear_autocast_cache()
        if self.stops_on_non_finite:
            before_any_step, *_ = call.trace.losses
            check_finite(
                [before_any_step],
                "inner losses before any inner step",
                "the model is broken: lower learning_rate, or look for NaN in its weights",
            )
            check_finite(call.trace.losses, "inner losses", STEP_MENDS[config.inner_step])
        call.is_adapting = False

    def _activate_call(
        self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Check the mask, and name the call that the fast weights of this layer belong to.

        Attention is the first part of a layer that gets the keyword arguments, in a recompute
        too, and the adapted linear maps follow it.
        """
        call = kwargs.get(CALL)
        if call is not None:
            check_mask_arrived(attention, kwargs)
        self._active = None if call is None else weakref.ref(call)

    def _add_fast_weights(
        self, index: int, target: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        call = self._active_call
        if call is None or call.fast_weights is None:
            return output
        if not call.is_adapting:
            call.maps_adapted += 1
        x, rows_per_document = args[0], None
        if x.ndim == 2:
            assert call.last_layer is not None
            rows_per_document = call.last_layer.per_document
        return call.fast_weights.add_to(output, index, x, rows_per_document)

    def _cut_queries(
        self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The last layer attends from the wanted rows only; its MLP gets these, and no others."""
        call = kwargs.get(CALL)
        if call is None or call.last_layer is None:
            return None
        return args, kwargs | {ATTENTION: call.last_layer.attention}

    def _take_rows(self, mlp: nn.Module, args: tuple[Tensor]) -> Tensor | None:
        call = self._active_call
        if call is None or call.last_layer is None:
            return None
        return call.last_layer.take(args[0])

    def _put_rows_back(self, mlp: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        call = self._active_call
        if call is None or call.last_layer is None:
            return None
        return call.last_layer.put_back(output)

    def _compute_loss(
        self,
        decoder: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        """The outer loss, here rather than after the head, so that autocast applies."""
        call = kwargs.get(CALL)
        if call is None:
            return
        keep_gathered(self._architecture.head)
        rows = call.rows
        hidden_RD = output[0][rows.mask_BS]
        losses_R = token_losses(hidden_RD, rows.targets_R, self._architecture.logits)
        normaliser = len(rows) if call.normaliser is None else call.normaliser
        call.loss = losses_R.sum() / torch.as_tensor(normaliser).clamp(min=1)
        if call.trace is not None:
            if call.maps_adapted != len(self._architecture.targets):
                raise UnsupportedModelError(
                    f"{call.maps_adapted} of {len(self._architecture.targets)} linear maps got "
                    "their fast weights; something leaves out hooks (torch.compile?): turn it off"
                )
            if self.stops_on_non_finite:
                check_finite(
                    [losses_R],
                    "token losses with adapted fast weights",
                    STEP_MENDS[self.config.inner_step],
                )
            self.trace = self._with_final_losses(call.trace, call, losses_R.detach())
        self._active = None

    def _return_loss(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        call = kwargs.get(CALL)
        if call is None:
            return output
        # The graph of the loss holds the call, through checkpointed layers: keep no cycle.
        loss, call.loss = call.loss, None
        if isinstance(output, tuple):
            return (loss, *output)
        return type(output)(**{**output, "loss": loss})

    # Parts of the hooks.

    @property
    def _active_call(self) -> FocusCall | None:
        return None if self._active is None else self._active()

    def _attention(self, layout: TurnLayout, context_attention: ContextAttention) -> TurnAttention:
        return turn_attention(self._architecture.model, layout, context_attention)

    def _inner_trunk(
        self, call: FocusCall, trunk_input: tuple[Tensor, dict[str, Any]]
    ) -> tuple[Tensor, dict[str, Any]]:
        """The trunk once more, under the inner loop's own mask."""
        hidden_BSD, layer_kwargs = trunk_input
        attention = self._attention(call.layout, self.config.inner_attention)
        layer_kwargs = {**layer_kwargs, **attention.model_kwargs}
        with torch.set_grad_enabled(self.config.inner_order == 2):
            for layer in self._architecture.trunk:
                with gathered(layer):
                    hidden_BSD = unhooked(layer)(hidden_BSD, **layer_kwargs)
        return hidden_BSD, layer_kwargs

    def _with_final_losses(
        self, trace: InnerTrace, call: FocusCall, losses_R: Tensor
    ) -> InnerTrace:
        """Add the inner loss after the last step, where the outer forward has computed it."""
        config = self.config
        is_known = (
            config.inner_step == "fixed"
            and config.inner_objective != "context"
            and config.inner_attention == call.context_attention
        )
        if not is_known or call.inner_rows is None:
            return trace
        inner_losses_R = losses_R[call.inner_rows.mask_BS[call.rows.mask_BS]]
        return trace.with_final_losses(call.inner_rows.mean_of_each_document(inner_losses_R))


def _last_layer_rows(rows: PredictedRows, attention: TurnAttention) -> LastLayerRows | None:
    """None without a single row: every parameter shall have a gradient then, if a zero one."""
    return LastLayerRows(rows, attention) if len(rows) > 0 else None


def _split_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Separate a layer's hidden states [B, S, D] from its other arguments."""
    if args:
        return args[0], dict(kwargs)
    others = dict(kwargs)
    return others.pop("hidden_states"), others
