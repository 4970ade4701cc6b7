"""Bytes on one device: what autograd keeps for the backward pass, and what else is alive.

Each function is one term, with what it was read from (letters: see `setup.py`).
`benchmarks/plan_check.py` holds them against measurement. They are exact for layers as Llama's,
Mistral's, Qwen2's and Qwen3's are (RMSNorm, rotary positions, gated MLP); other families differ
by their norms.
"""

from __future__ import annotations

from focusft.method.config import FocusConfig
from focusft.method.loss import ROWS_PER_CHUNK
from focusft.training.plan.setup import (
    OPTIMIZER_STATES,
    PRECISIONS,
    Call,
    ModelShape,
    Precision,
    Setup,
    attention_calls,
    inner_rows,
    response_calls,
)


def norm_bytes(
    width: int, tokens: int, readers: int, precision: Precision, *, is_frozen: bool = False
) -> int:
    """RMSNorm keeps its input in fp32, the normed input, and its output for those who read it.

    Under autocast each reader makes a bf16 copy of its own. A frozen norm does not keep the normed
    input.
    """
    copies = readers if precision.is_autocast else min(readers, 1)
    normed = 0 if is_frozen else precision.residual
    return tokens * width * (4 + normed + copies * precision.compute)


def attention_bytes(
    shape: ModelShape, setup: Setup, calls: list[Call], *, is_frozen: bool = False
) -> int:
    """What attention keeps in one layer.

    The kernels keep q, k, v, out (T * d * (2 H + 2 G) numbers of c bytes) and the fp32 log-sum-exp
    (T * H). Segments: outputs of several calls are joined to one more tensor of T * H * d, kept
    unless the map behind attention is frozen; each block of response rows keeps its mask,
    [rows, keys]; on a GPU these calls also copy keys and values to H heads, and autocast copies
    the keys for every call. Dense: a mask of S * S numbers for each document, and keys and values
    copied to H heads.
    """
    precision = setup.activation_precision
    c = precision.compute
    q, kv = shape.query_width, shape.key_width
    per_token = c * (2 * q + 2 * kv) + 4 * shape.heads
    if shape.has_qk_norm:
        per_token += (4 + c) * (q + kv)
    total = setup.tokens * per_token
    if setup.backend == "dense":
        copied = 2 * c * (q - kv) * setup.tokens if shape.heads != shape.key_heads else 0
        mask = max(c, 4 if setup.device == "cpu" else c) * setup.length**2
        return total + copied + setup.documents * mask
    if setup.backend == "segments":
        if setup.documents * len(calls) > 1 and not is_frozen:
            total += c * setup.tokens * q
        for call in calls:
            if call.is_masked:
                number = 4 if setup.device == "cpu" else c
                total += setup.documents * number * call.queries * call.keys
                if setup.device == "cuda" and shape.heads != shape.key_heads:
                    total += setup.documents * 2 * c * q * call.keys
        if precision.is_autocast:
            total += setup.documents * c * kv * (sum(call.keys for call in calls) - setup.length)
    return total


def mlp_bytes(shape: ModelShape, tokens: int, precision: Precision) -> int:
    """A gated MLP keeps gate, act(gate), up and their product, each F wide; others two of them."""
    return tokens * precision.compute * shape.intermediate * (4 if shape.is_gated else 2)


def layer_bytes(shape: ModelShape, setup: Setup, calls: list[Call], mlp_tokens: int) -> int:
    """What one layer of the outer forward keeps: two norms, attention, MLP."""
    precision = setup.activation_precision
    return (
        norm_bytes(shape.hidden, setup.tokens, 3, precision)
        + attention_bytes(shape, setup, calls)
        + norm_bytes(shape.hidden, setup.tokens, shape.mlp_readers, precision)
        + mlp_bytes(shape, mlp_tokens, precision)
    )


def hidden_bytes(shape: ModelShape, setup: Setup) -> int:
    """Hidden states between two layers."""
    return setup.tokens * shape.hidden * setup.activation_precision.residual


def attended_bytes(shape: ModelShape, setup: Setup) -> int:
    """Attention's own output, T * H * d, and its log-sum-exp in fp32, T * H."""
    compute = setup.activation_precision.compute
    return setup.tokens * (compute * shape.query_width + 4 * shape.heads)


def products_bytes(
    shape: ModelShape, setup: Setup, *, rank: int, mlp_tokens: int, with_attention: bool = True
) -> int:
    """Outputs of the matrix products of a layer but for attention's own.

    T * (2 H + 2 G) * d, T * D behind attention, F and D wide ones in the MLP, and T * r for each
    target.
    """
    c = setup.activation_precision.compute
    total = 0
    for m in shape.maps:
        if m.level <= 1 and not with_attention:
            continue
        tokens = setup.tokens if m.level <= 1 else mlp_tokens
        total += tokens * c * (m.outputs + (rank if m.has_fast_weights else 0))
    return total


def kept_layer_bytes(
    shape: ModelShape,
    setup: Setup,
    of_layer: int,
    *,
    rank: int,
    mlp_tokens: int,
    with_attention: bool = True,
) -> int:
    """What a layer keeps from its forward to its backward, of all that its backward needs."""
    if setup.checkpointing == "none":
        return of_layer
    kept = hidden_bytes(shape, setup)
    if with_attention and setup.checkpointing != "full":
        kept += attended_bytes(shape, setup)
    if setup.checkpointing == "selective":
        kept += products_bytes(
            shape, setup, rank=rank, mlp_tokens=mlp_tokens, with_attention=with_attention
        )
        last = shape.maps[-1]
        is_cut = mlp_tokens < setup.tokens
        if shape.is_plain and not is_cut and not (rank and last.has_fast_weights):
            # Only the residual sum follows it, so a recompute ends before it.
            kept -= mlp_tokens * setup.activation_precision.compute * last.outputs
    return kept


def workspace_bytes(shape: ModelShape, setup: Setup, tokens: int) -> int:
    """Gradients alive in the backward of an MLP: two F wide, and two hidden states."""
    precision = setup.activation_precision
    return tokens * (2 * shape.intermediate * precision.compute + 2 * shape.hidden * 4)


def logits_bytes(shape: ModelShape, rows: int) -> int:
    """Log-probabilities and two gradients, fp32, for one chunk of rows at a time."""
    return 3 * 4 * min(rows, ROWS_PER_CHUNK) * shape.vocabulary


def kept_logits_bytes(shape: ModelShape, rows: int) -> int:
    """Log-probabilities kept from the forward to the backward: none where chunks recompute."""
    return 4 * rows * shape.vocabulary if rows <= ROWS_PER_CHUNK else 0


def inner_layers_bytes(
    shape: ModelShape, focus: FocusConfig, setup: Setup
) -> list[tuple[int, int]]:
    """What the backward of each adapted layer needs in one inner step, and what is kept for it.

    Less than in the outer forward where `method/top_layers.py` and `method/last_layer.py` leave
    parts out, and since weights are frozen: inputs of linear maps are kept for fast weights only.
    T * r numbers more for each target.
    """
    precision = setup.activation_precision
    calls = attention_calls(setup, focus.inner_attention)
    rows = inner_rows(focus, setup)
    levels = [m.level for m in shape.targets]

    def of_norm(readers: int) -> int:
        return norm_bytes(shape.hidden, setup.tokens, readers, precision, is_frozen=True)

    def of_targets(number: int, tokens: int) -> int:
        return number * tokens * focus.inner_rank * precision.compute

    layers = []
    for index in range(shape.adapted):
        is_first, is_last = index == 0, index == shape.adapted - 1
        tokens = rows if is_last and shape.is_plain else setup.tokens
        of_mlp = of_norm(levels.count(2)) + mlp_bytes(shape, tokens, precision)
        of_mlp += of_targets(levels.count(2) + levels.count(3), tokens)
        is_split = is_first and shape.is_plain and not shape.adapts_attention
        of_attention = 0
        if is_split:
            of_mlp -= 4 * setup.tokens * shape.hidden  # its input needs no gradient
        else:
            is_cut = is_last and shape.is_plain and focus.inner_objective != "context"
            layer_calls = response_calls(calls) if is_cut else calls
            of_attention = of_norm(levels.count(0))
            of_attention += attention_bytes(shape, setup, layer_calls, is_frozen=True)
            of_attention += of_targets(levels.count(0) + levels.count(1), setup.tokens)
        total = of_mlp + of_attention
        # With selective checkpointing the MLP alone is checkpointed.
        is_apart = shape.is_plain and setup.checkpointing == "selective"
        kept = kept_layer_bytes(
            shape,
            setup,
            total,
            rank=focus.inner_rank,
            mlp_tokens=tokens,
            with_attention=not (is_split or is_apart),
        )
        if is_apart:
            kept += of_attention
        layers.append((total, kept))
    return layers


def memory_terms(shape: ModelShape, focus: FocusConfig, setup: Setup) -> dict[str, int]:
    """Every term in bytes on one device.

    Args:
        shape: The model.
        focus: Options of the method.
        setup: The run.

    Returns:
        Terms by name. Not all are alive at the same time: see `memory_moments`. "attention" is
        a part of the activations, not added to them.
    """
    weights = PRECISIONS[setup.precision].weights
    precision = setup.activation_precision
    calls = attention_calls(setup, focus.context_attention)
    of_layer, hidden = layer_bytes(shape, setup, calls, setup.tokens), hidden_bytes(shape, setup)
    outside_layers = norm_bytes(shape.hidden, setup.tokens, 1, precision)
    linear = sum(m.size for m in shape.maps) * shape.layers + shape.head_size
    casts = 2 * linear if precision.is_autocast else 0
    steps = focus.num_inner_steps
    of_trunk, of_top = (
        kept_layer_bytes(shape, setup, of_layer, rank=rank, mlp_tokens=setup.tokens)
        for rank in (0, focus.inner_rank if steps else 0)
    )
    of_last = of_top
    if shape.is_plain:
        of_last = kept_layer_bytes(
            shape,
            setup,
            layer_bytes(shape, setup, response_calls(calls), setup.rows),
            rank=focus.inner_rank if steps else 0,
            mlp_tokens=setup.rows,
        )
    # Between the forward of the trunk and the outer forward of the top layers.
    trunk = shape.first_adapted * of_trunk
    kept = outside_layers + trunk + (shape.adapted - 1) * of_top + of_last

    sharded = setup.shards > 1
    tail = shape.head_size * (1 if shape.is_tied else 2)
    unsharded_layers = 2 if sharded else 0  # the current one and the prefetched one
    terms = {
        "parameters": shape.parameters * weights // setup.shards,
        "gradients": shape.parameters * weights // setup.shards,
        "optimizer state": int(shape.parameters * weights * OPTIMIZER_STATES[setup.optimizer])
        // setup.shards,
        "DDP gradient buckets": (
            shape.parameters * weights if setup.data_parallel > 1 and not sharded else 0
        ),
        "FSDP2 unsharded, outer loop": (
            precision.compute * (tail + unsharded_layers * shape.layer_parameters) * int(sharded)
        ),
        "FSDP2 unsharded gradients": (
            precision.compute * unsharded_layers * shape.layer_parameters
        ),
        "FSDP2 unsharded, inner loop": (
            precision.compute * (tail + shape.adapted * shape.layer_parameters) * int(sharded)
            if steps
            else 0
        ),
        "autocast weight copies": casts,
        "activations, kept": kept,
        "activations, recomputed": of_layer - of_trunk,
        "activations of one layer": of_layer,
        "attention of one layer": attention_bytes(shape, setup, calls),
        "logits": logits_bytes(shape, setup.rows),
        "head gradient": shape.head_size * weights,
        # Of whole micro-batches, in the type in which FSDP2 would reduce them.
        "FSDP2 gradients not yet reduced": (
            precision.compute * shape.parameters
            if sharded and setup.accumulation > 1 and not setup.syncs_each_batch
            else 0
        ),
        "workspace": workspace_bytes(shape, setup, setup.tokens),
    }
    if setup.backend == "dense":
        terms["dense mask"] = setup.documents * setup.length**2
    if steps:
        layers = inner_layers_bytes(shape, focus, setup)
        rows = inner_rows(focus, setup)
        inner = sum(kept for _, kept in layers) + max(whole - kept for whole, kept in layers)
        is_last_cut = setup.checkpointing == "none" and shape.is_plain
        space = workspace_bytes(shape, setup, rows if is_last_cut else setup.tokens)
        terms |= {
            "trunk activations": trunk + hidden,
            # The first layer's attended input is kept through all steps.
            "inner activations": hidden + inner,
            "inner logits": logits_bytes(shape, rows),
            "inner workspace": space,
            "fast weights": 4 * shape.fast_weights(focus.inner_rank) * setup.documents,
        }
    return terms


def memory_moments(terms: dict[str, int], setup: Setup) -> dict[str, int]:
    """Sums of the terms that are alive together, at each moment that can be the peak.

    Activations shrink while gradients grow in the backward pass, so that its two ends bound it.
    """
    t = terms
    state = t["parameters"] + t["optimizer state"] + t["DDP gradient buckets"]
    unreduced = t["FSDP2 gradients not yet reduced"]
    before = state + t.get("dense mask", 0)
    if setup.accumulation > 1:
        before += unreduced or t["gradients"]
    fast = t.get("fast weights", 0)
    casts = t["autocast weight copies"]
    outer_shards = t["FSDP2 unsharded, outer loop"] + t["FSDP2 unsharded gradients"]
    kept_casts = 0 if setup.recomputes_products else casts
    head = t["head gradient"] // setup.shards
    moments = {}
    if "inner activations" in t:
        # During a step: phi_0 and phi_k. At its update: the gradients, before and after clipping.
        during = t["inner activations"] + 2 * fast
        during += max(t["inner logits"], t["inner workspace"])
        moments["inner loop"] = (
            before
            + t["trunk activations"]
            + max(during, 4 * fast)
            + casts
            + t["FSDP2 unsharded, inner loop"]
        )
    moments["start of the backward pass"] = (
        before
        + t["activations, kept"]
        + fast
        + kept_casts
        + outer_shards
        + max(t["logits"], head + t["activations, recomputed"] + t["workspace"])
    )
    moments["end of the backward pass"] = (
        state
        + (unreduced or t["gradients"])
        + t["activations of one layer"]
        + t["workspace"]
        + kept_casts
        + outer_shards
    )
    moments["optimizer step"] = state + t["gradients"]
    return moments
