"""The published algorithm, transcribed literally: B = 1, everything recomputed, dense mask.

It shares no code with the package. Only phi_0 is taken from outside, since it is random.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class LoraLinear(nn.Module):
    def __init__(self, base, A, B, scaling):
        super().__init__()
        self.base, self.A, self.B, self.scaling = base, nn.Parameter(A), nn.Parameter(B), scaling

    def forward(self, x):
        return self.base(x) + self.scaling * (x @ self.A.T @ self.B.T)


def literal_mask(labels, dtype, bidirectional=True):
    """Additive [1, 1, S, S]: earlier turns, the own context turn, the own response so far."""
    size = len(labels)
    turn, turns = 0, []
    for i in range(size):
        if i > 0 and (labels[i] == -100) != (labels[i - 1] == -100):
            turn += 1
        turns.append(turn)
    mask = torch.full((1, 1, size, size), torch.finfo(dtype).min, dtype=dtype)
    for i in range(size):
        for j in range(size):
            same_context = turns[i] == turns[j] and labels[i] == -100
            if j <= i or (bidirectional and same_context):
                mask[0, 0, i, j] = 0
    return mask


def literal_loss(causal_lm, input_ids, labels, mask, keep=lambda position: True):
    logits = causal_lm(input_ids=input_ids[None], attention_mask=mask, use_cache=False).logits[0]
    total, count = 0, 0
    for i in range(1, len(labels)):
        if labels[i] != -100 and keep(i):
            total = total + F.cross_entropy(logits[i - 1][None], labels[i][None])
            count += 1
    return total / max(count, 1)


def literal_focusft(
    causal_lm,
    layers,
    input_ids,
    labels,
    A0,
    config,
    bidirectional=True,
    inner_keep=lambda position: True,
    inner_labels=None,
    inner_bidirectional=None,
):
    """Run one step; return the outer loss, the inner losses and the gradients by name.

    The inner loop may have labels and a mask of its own: then its whole forward does.
    Adds LoraLinear modules and takes them out again before it returns.
    """
    trained = {name: p for name, p in causal_lm.named_parameters() if p.requires_grad}
    targets = config.inner_target_modules.split(",")
    first = int(len(layers) * (1.0 - config.inner_layer_fraction))
    mask = literal_mask(labels.tolist(), causal_lm.dtype, bidirectional)
    inner_mask = mask
    if inner_bidirectional is not None:
        inner_mask = literal_mask(labels.tolist(), causal_lm.dtype, inner_bidirectional)
    if inner_labels is None:
        inner_labels = labels
    wrapped, originals = [], []
    for layer in layers[first:]:
        for name in targets:
            base = getattr(layer.mlp, name)
            A = A0[len(wrapped)].clone().to(causal_lm.dtype)
            B = torch.zeros(base.out_features, A.shape[0], dtype=A.dtype)
            lora = LoraLinear(base, A, B, config.inner_alpha / config.inner_rank)
            setattr(layer.mlp, name, lora)
            wrapped.append(lora)
            originals.append((layer.mlp, name, base))
    phi = [p for lora in wrapped for p in (lora.A, lora.B)]
    inner_losses = []
    for _ in range(config.num_inner_steps):
        loss = literal_loss(causal_lm, input_ids, inner_labels, inner_mask, inner_keep)
        inner_losses.append(loss.item())
        gradients = torch.autograd.grad(loss, phi)
        with torch.no_grad():
            for parameter, gradient in zip(phi, gradients, strict=True):
                norm = gradient.norm()
                if config.inner_grad_clip > 0 and norm > config.inner_grad_clip:
                    gradient = gradient * (config.inner_grad_clip / (norm + 1e-12))
                parameter -= config.inner_lr * gradient
    loss = literal_loss(causal_lm, input_ids, labels, mask)
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    for module, name, base in originals:
        setattr(module, name, base)
    return loss.item(), inner_losses, dict(zip(trained, gradients, strict=True))
