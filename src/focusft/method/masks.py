"""Who may attend to whom: the mask of both loops, as a predicate and as the dense oracle.

Context tokens attend to their whole block, response tokens only backwards, nobody sees another
document or padding (arXiv 2605.09932, section 3.2).

Shapes: B batch, S sequence, Q query, K key.
"""

from __future__ import annotations

from torch import Tensor, arange

from focusft.method.config import ContextAttention
from focusft.method.turns import TurnLayout


def may_attend(
    layout: TurnLayout,
    context_attention: ContextAttention,
    row: Tensor,
    query: Tensor,
    key: Tensor,
) -> Tensor:
    """Tell whether the token `query` of a row may attend to the token `key` of the same row.

    Allowed iff both lie in the same document and the key is not later, or both lie in the same
    context block. Padding sees only itself, which keeps its softmax finite.

    Args:
        layout: Turns of the batch.
        context_attention: "bidirectional", or "causal" for the ordinary mask.
        row: Row indices, broadcastable with the others.
        query: Query positions.
        key: Key positions.
    """
    document_ids_BS = layout.document_ids_BS
    same_document = document_ids_BS[row, query] == document_ids_BS[row, key]
    allowed = same_document & (key <= query)
    if context_attention == "bidirectional":
        same_block = layout.block_ids_BS[row, query] == layout.block_ids_BS[row, key]
        allowed = allowed | (same_block & layout.is_context_BS[row, query])
    is_token = layout.is_token_BS[row, query]
    return (allowed & is_token) | (~is_token & (query == key))


def dense_mask(layout: TurnLayout, context_attention: ContextAttention) -> Tensor:
    """Evaluate the predicate on every pair of tokens: the oracle of the faster backends.

    Returns:
        Bool tensor [B, 1, S, S], True where the query (third axis) may attend to the key.
    """
    batch, sequence = layout.document_ids_BS.shape
    device = layout.document_ids_BS.device
    row = arange(batch, device=device).view(-1, 1, 1)
    position = arange(sequence, device=device)
    mask_BQK = may_attend(
        layout, context_attention, row, position.view(1, -1, 1), position.view(1, 1, -1)
    )
    return mask_BQK.unsqueeze(1)


def draw_mask(
    layout: TurnLayout, context_attention: ContextAttention, *, row: int = 0, width: int = 48
) -> str:
    """Draw the mask of one row as text, queries downwards and keys to the right.

    `C` and `R` mark context and response queries, `#` allowed pairs, `.` blocked ones. Longer
    rows are sampled evenly to `width` tokens.
    """
    sequence = layout.document_ids_BS.shape[1]
    shown = arange(0, sequence, max(1, -(-sequence // width)))
    allowed_QK = dense_mask(layout, context_attention)[row, 0][shown][:, shown].tolist()
    roles = layout.is_response_BS[row, shown].tolist()
    tokens = layout.is_token_BS[row, shown].tolist()
    lines = []
    for line, is_response, is_token in zip(allowed_QK, roles, tokens, strict=True):
        role = ("R" if is_response else "C") if is_token else "-"
        lines.append(f"{role} " + "".join("#" if allowed else "." for allowed in line))
    return "\n".join(lines)


def mask_svg(
    layout: TurnLayout, context_attention: ContextAttention, *, row: int = 0, size: int = 360
) -> str:
    """Draw the mask of one row as an SVG picture, queries downwards and keys to the right.

    Context queries are blue, response queries green, blocked pairs grey.
    """
    allowed_QK = dense_mask(layout, context_attention)[row, 0].tolist()
    roles = layout.is_response_BS[row].tolist()
    cells = []
    for query, (line, is_response) in enumerate(zip(allowed_QK, roles, strict=True)):
        colour = "#2a9d5c" if is_response else "#3b7dd8"
        start = 0
        for key in range(1, len(line) + 1):
            if key == len(line) or line[key] != line[start]:
                if line[start]:
                    cells.append(
                        f'<rect x="{start}" y="{query}" width="{key - start}" height="1" '
                        f'fill="{colour}"/>'
                    )
                start = key
    side = len(allowed_QK)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" '
        f'viewBox="0 0 {side} {side}" shape-rendering="crispEdges" role="img" '
        f'aria-label="attention mask, {context_attention} context">'
        f'<rect width="{side}" height="{side}" fill="#e9ecef"/>{"".join(cells)}</svg>\n'
    )
