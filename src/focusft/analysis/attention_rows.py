"""Attention of some queries of one document: recomputed in chunks, reduced to figures per head.

Memory is that of one chunk, `WEIGHTS_PER_CHUNK` weights, whatever the number of queries.

Shapes: H query heads, G key heads, T tokens of one document, Q queries, C queries of a chunk,
D features of a head, F figures, E distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Sums of attention over a group of keys, in the order of `KeyGroups.stacked`.
MASSES = (
    "sink_mass",
    "sink_mass_first_four",
    "context_mass",
    "context_engagement",
    "needle_mass",
)
# Defined with formulas in docs/attention.md.
FIGURES = (*MASSES, "entropy", "sink_mass_favoured", "favoured_share", "favoured_is_first")
FIRST_TOKENS = 4
WEIGHTS_PER_CHUNK = 1 << 21
# Distances from query back to key: ahead of the query, 0, 1, 2 to 3, 4 to 7, ... up to 2**22 - 1.
DISTANCE_STARTS = (-1, 0, *(1 << power for power in range(22)))


@dataclass(frozen=True)
class KeyGroups:
    """The tokens of a document that attention is summed over, bool [T] each.

    Attributes:
        context: Context tokens.
        content: Context tokens that say something: no template text, no special token.
        needle: Tokens of marked facts; None where nothing is marked.
    """

    context: Tensor
    content: Tensor
    needle: Tensor | None = None

    def stacked(self) -> Tensor:
        """One row for each of `MASSES`, float [5, T]; NaN for needles that are not marked."""
        position = torch.arange(len(self.context), device=self.context.device)
        is_sink = position == 0
        is_first = position < FIRST_TOKENS
        rows = [is_sink, is_first, self.context & ~is_sink, self.content & ~is_first]
        stacked = torch.stack(rows).float()
        needle = torch.full_like(stacked[:1], torch.nan)
        if self.needle is not None:
            needle = self.needle[None].float()
        return torch.cat([stacked, needle])


@dataclass(frozen=True)
class RowFigures:
    """Means over the queries.

    Attributes:
        figures_HF: The `FIGURES` of each head.
        distances_HE: Attention by distance (`DISTANCE_STARTS`), without that on the first token.
        received_T: Attention that each token gets, mean over the heads.
    """

    figures_HF: Tensor
    distances_HE: Tensor
    received_T: Tensor


def attention_figures(
    query_HQD: Tensor,
    key_GTD: Tensor,
    positions_Q: Tensor,
    allowed_QT: Tensor,
    groups: KeyGroups,
    scaling: float,
) -> RowFigures:
    """Recompute the attention of some queries and reduce it.

    Args:
        query_HQD: Queries, positions encoded.
        key_GTD: All keys of the document; G divides H.
        positions_Q: Where the queries stand in the document.
        allowed_QT: True where a query may attend to a key.
        groups: Tokens to sum over.
        scaling: Factor of the products.
    """
    heads, queries, _ = query_HQD.shape
    tokens = key_GTD.shape[1]
    precise = torch.promote_types(query_HQD.dtype, torch.float32)
    key_GTD = key_GTD.to(precise)
    received_HT = key_GTD.new_zeros(heads, tokens)
    favoured_HT = torch.zeros_like(received_HT)
    entropy_H = key_GTD.new_zeros(heads)
    distances_HE = key_GTD.new_zeros(heads, len(DISTANCE_STARTS))
    rows = max(1, WEIGHTS_PER_CHUNK // (heads * tokens))
    for start in range(0, queries, rows):
        chunk = slice(start, start + rows)
        weights_HCT = _weights(query_HQD[:, chunk].to(precise), key_GTD, allowed_QT[chunk], scaling)
        received_HT += weights_HCT.sum(dim=1)
        favourites_HC = weights_HCT.argmax(dim=-1)
        favoured_HT.scatter_add_(1, favourites_HC, torch.ones_like(weights_HCT[..., 0]))
        distances_HE += _by_distance(weights_HCT, positions_Q[chunk])
        entropy_H -= torch.special.xlogy(weights_HCT, weights_HCT).sum(dim=(1, 2))
    received_HT /= queries
    favoured_share_H, favourite_H = favoured_HT.max(dim=1)
    columns = [
        *(received_HT @ groups.stacked().to(precise).T).unbind(dim=1),
        entropy_H / queries,
        received_HT.gather(1, favourite_H[:, None])[:, 0],
        favoured_share_H / queries,
        (favourite_H == 0).to(precise),
    ]
    return RowFigures(torch.stack(columns, dim=1), distances_HE / queries, received_HT.mean(dim=0))


def _weights(query_HCD: Tensor, key_GTD: Tensor, allowed_CT: Tensor, scaling: float) -> Tensor:
    heads, chunk, features = query_HCD.shape
    # The query heads that share a key head become further queries of it.
    grouped = query_HCD.reshape(key_GTD.shape[0], -1, features) * scaling
    scores_HCT = (grouped @ key_GTD.transpose(1, 2)).view(heads, chunk, -1)
    return scores_HCT.masked_fill_(~allowed_CT, -torch.inf).softmax(dim=-1)


def _by_distance(weights_HCT: Tensor, positions_C: Tensor) -> Tensor:
    """Attention by distance, summed over the queries, [H, E]."""
    heads, chunk, tokens = weights_HCT.shape
    # Distance d lies at key i - d, so the keys of the distances from s onwards end at i - s + 1.
    starts_E = torch.tensor(DISTANCE_STARTS[1:], device=positions_C.device)
    ends_CE = positions_C[:, None] - starts_E + 1
    whole_C1 = torch.full_like(ends_CE[:, :1], tokens)
    # Below 1 is the first token, the sink, which is left out.
    ends_CE = torch.cat([whole_C1, ends_CE, torch.ones_like(whole_C1)], dim=1).clamp(min=1)
    cumulated_HCT = weights_HCT.cumsum(dim=-1)
    bounds_HCE = cumulated_HCT.gather(2, (ends_CE - 1).expand(heads, chunk, -1))
    return (bounds_HCE[..., :-1] - bounds_HCE[..., 1:]).sum(dim=1)
