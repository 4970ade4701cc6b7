"""Shared by the tests of the method: batches, one attached call, the oracle's comparison."""

from types import MethodType

import torch

import focusft
from focusft.method.architectures import read_architecture
from focusft.method.fast_weights import initial_fast_weights
from tests.method.oracle import literal_focusft
from tests.tiny_models import tiny_model

CONFIG = focusft.FocusConfig(
    num_inner_steps=2, inner_lr=0.3, inner_rank=4, inner_alpha=8, inner_layer_fraction=0.5
)
SINGLE_TURN = [(12, 8)]
MULTI_TURN = [(9, 4), (5, 3), (1, 6)]


def conversation(turns, seed=0, vocabulary=128):
    """Random tokens with labels on the second of each (context, response) pair of lengths."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, vocabulary, (sum(map(sum, turns)),), generator=generator)
    labels, start = input_ids.clone(), 0
    for context, response in turns:
        labels[start : start + context] = -100
        start += context + response
    return input_ids, labels


def phi_0(engine, input_ids, labels, device="cpu"):
    parts = engine._architecture
    input_ids, labels = input_ids.to(device), labels.to(device)  # a GPU draws other values
    layout = focusft.TurnLayout.from_labels(labels[None])
    weights = initial_fast_weights(
        parts.shapes,
        rank=engine.config.inner_rank,
        alpha=engine.config.inner_alpha,
        dropout=0.0,
        input_ids_BS=input_ids[None],
        layout=layout,
        seed=engine.config.seed,
        step=engine.step,
        dtype=parts.model.dtype,
    )
    return [A[0].cpu() for A in weights.A]


def gradients_of(model, config, **batch):
    """Outer loss, trace and gradients by name of one attached call; leaves the model detached."""
    engine = focusft.attach(model, config)
    model.train()
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    engine.detach()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), engine, gradients


def relative_error(actual, expected):
    assert actual.keys() == {name for name, g in expected.items() if g is not None}
    difference = sum((actual[name] - expected[name]).square().sum() for name in actual)
    return (difference / sum(g.square().sum() for g in actual.values())).sqrt().item()


def compare(model, config, turns, oracle_config=None, device="cpu", **oracle_options):
    """Our loss, the oracle's, the engine, the oracle's inner losses, the gradients' error.

    Ours are computed on the device, the oracle's on the CPU.
    """
    input_ids, labels = conversation(turns)
    loss, engine, actual = gradients_of(
        model.to(device),
        config,
        input_ids=input_ids[None].to(device),
        labels=labels[None].to(device),
    )
    model.cpu()
    actual = {name: gradient.cpu() for name, gradient in actual.items()}
    parts = read_architecture(model, config)
    A0 = [] if config.num_inner_steps == 0 else phi_0(engine, input_ids, labels, device)
    if not A0:
        A0 = [torch.zeros(config.inner_rank, features) for features, _ in parts.shapes]
    expected_loss, inner_losses, expected = literal_focusft(
        parts.model,
        parts.layers,
        input_ids,
        labels,
        A0,
        oracle_config or config,
        **oracle_options,
    )
    prefix = "base_model.model." if parts.model is not model else ""
    expected = {prefix + name: gradient for name, gradient in expected.items()}
    return loss, expected_loss, engine, inner_losses, relative_error(actual, expected)


BACKENDS = ["segments", "dense"]
# Of gradients against the oracle, which has a dense mask. In float32 torch's CPU kernel takes its
# exponentials with about 20 bits, so two ways through it differ by a little more than one does.
TOLERANCE = {
    ("dense", torch.float32): 1e-6,
    ("segments", torch.float32): 1e-5,
    ("dense", torch.float64): 1e-10,
    ("segments", torch.float64): 1e-10,
}


DOCUMENTS = [
    conversation(turns, seed)
    for seed, turns in enumerate([[(9, 4)], [(5, 3), (4, 2)], [(12, 7), (2, 1), (3, 2)]])
]


def packed(documents):
    """One row of documents, told apart by their positions."""
    return {
        "input_ids": torch.cat([ids for ids, _ in documents])[None],
        "labels": torch.cat([labels for _, labels in documents])[None],
        "position_ids": torch.cat([torch.arange(len(ids)) for ids, _ in documents])[None],
    }


def padded(rows, side="right"):
    """Packed rows of several lengths as one batch with an attention mask."""
    rows = [row | {"attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
    size = max(row["input_ids"].shape[1] for row in rows)

    def pad(tensor_1S, fill):
        missing = size - tensor_1S.shape[1]
        widths = (0, missing) if side == "right" else (missing, 0)
        return torch.nn.functional.pad(tensor_1S, widths, value=fill)

    return {
        name: torch.cat([pad(row[name], -100 if name == "labels" else 0) for row in rows])
        for name in rows[0]
    }


def single(document):
    """A batch of one document."""
    return {"input_ids": document[0][None], "labels": document[1][None]}


def mean_of_single_runs(model, config, documents):
    """Token-normalised mean of loss and gradients over one run for each document; the engines."""
    counts = [(labels[1:] != -100).sum().item() for _, labels in documents]
    mean_loss, total, engines = 0.0, {}, []
    for document, count in zip(documents, counts, strict=True):
        loss, engine, gradients = gradients_of(model, config, **single(document))
        share = count / sum(counts)
        mean_loss += share * loss
        for name, gradient in gradients.items():
            total[name] = total.get(name, 0) + share * gradient
        engines.append(engine)
    return mean_loss, total, engines


def assert_mends(error, *words):
    """The message is one line and names these words: what is wrong and how to mend it."""
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def double_model(family, **config_overrides):
    """A float64 model that computes in float64 throughout: stock RMS norms round to float32."""
    model = tiny_model(family, dtype=torch.float64, **config_overrides)

    def forward(norm, hidden):
        variance = hidden.square().mean(-1, keepdim=True)
        return norm.weight * hidden * torch.rsqrt(variance + norm.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(forward, module)
    return model
