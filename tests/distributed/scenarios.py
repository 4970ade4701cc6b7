"""What the processes of the distributed tests run: some steps of training on tiny models."""

from collections import Counter

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import focusft
from focusft.method.architectures import unwrap_causal_lm
from focusft.method.engine import FocusEngine
from focusft.training.checkpointing import checkpoint_selectively
from tests.method.helpers import conversation
from tests.tiny_models import tiny_model

MICRO_BATCHES = 8  # of all ranks together, in one step
FOCUS = {"num_inner_steps": 2, "inner_lr": 0.1, "inner_rank": 4, "inner_layer_fraction": 0.5}
PLAIN_SFT = {"num_inner_steps": 0, "context_attention": "causal"}


class CollectiveCounter(TorchDispatchMode):
    """Counts collectives by name, those of DDP's reducer and of FSDP2 alike."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.namespace == "c10d":
            self.counts[operation._opname] += 1
        return operation(*args, **(kwargs or {}))


def micro_batches(step):
    """Conversations with 2 to 9 labelled tokens; none on every second one in each third step."""
    batches = []
    for number in range(MICRO_BATCHES):
        turns = [(6 + (step + 3 * number) % 7, 1 + number % 4), (4, 1 + (step + number) % 5)]
        ids, labels = conversation(turns, seed=100 * step + number)
        if step % 3 == 1 and number % 2:
            labels = torch.full_like(labels, -100)
        batches.append({"input_ids": ids[None], "labels": labels[None]})
    return batches


def shard(model, grouping, policy, reshard_after_forward=True):
    """Shard as accelerate does, with a group for the tail, or layers and root only."""
    options = {"mp_policy": policy, "reshard_after_forward": reshard_after_forward}
    stock = unwrap_causal_lm(model)
    for layer in stock.model.layers:
        fully_shard(layer, **options)
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    if grouping == "accelerate":
        tail = [stock.model.norm, head]
        if embed.weight is head.weight:
            tail.insert(1, embed)
        else:
            fully_shard(embed, **options)
        fully_shard(tail, mp_policy=policy, reshard_after_forward=False)
    elif grouping == "head alone":
        fully_shard(head, **options)
    fully_shard(model, mp_policy=policy)


def whole(tensor):
    """A detached copy, gathered from all ranks."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def train(
    wrapper,
    steps=20,
    family="llama",
    tied=False,
    options=FOCUS,
    grouping="accelerate",
    checkpointing="none",
    low_precision=False,
    reshard_after_forward=True,
    adapters=False,
):
    """Losses, first gradients, last weights, and the collectives of the last step.

    Args:
        wrapper: none, ddp or fsdp2.
        steps: Optimizer steps; the micro-batches of each are spread over the ranks.
        family: See `tiny_model`.
        tied: Tie the embeddings.
        options: Those of `FocusConfig`.
        grouping: See `shard`.
        checkpointing: none, selective or full.
        low_precision: Parameters in bfloat16 in FSDP2's forward and backward.
        reshard_after_forward: FSDP2 frees a layer after its forward.
        adapters: Train LoRA adapters instead of all weights.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = tiny_model(family, tie_word_embeddings=tied).train()
    if adapters:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")).train()
    engine = FocusEngine(model, focusft.FocusConfig(**options), keep_plain_sft_stock=False)
    if checkpointing == "selective":
        checkpoint_selectively(model)
    elif checkpointing == "full":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped = model
    if wrapper == "ddp":
        wrapped = DistributedDataParallel(model)
    elif wrapper == "fsdp2":
        policy = MixedPrecisionPolicy(torch.bfloat16) if low_precision else MixedPrecisionPolicy()
        shard(model, grouping, policy, reshard_after_forward)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.01)
    losses, gradients = [], {}
    for step in range(steps):
        engine.step = step
        batches = micro_batches(step)
        labelled = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
        mine, total = batches[rank::ranks], torch.zeros(())
        counter = CollectiveCounter()
        for number, batch in enumerate(mine):
            is_last = number + 1 == len(mine)
            if wrapper == "ddp":
                wrapped.require_backward_grad_sync = is_last
            elif wrapper == "fsdp2":
                model.set_requires_gradient_sync(is_last)
            with counter:
                loss = wrapped(**batch, num_items_in_batch=labelled).loss
                (loss * ranks).backward()
            total += loss.detach()
        dist.all_reduce(total)
        losses.append(total.item())
        if step == 0:
            gradients = {name: whole(p.grad) for name, p in trained.items()}
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: whole(p) for name, p in trained.items()}
    return {
        "losses": losses,
        "gradients": gradients,
        "weights": weights,
        "collectives": dict(counter.counts),
        "raised": engine.trace is not None and engine.trace.steps_raised,
    }


def train_each(scenarios):
    """`train` with each of several sets of arguments, one after the other."""
    return [train(**scenario) for scenario in scenarios]


def count_collectives(scenarios):
    """Collectives of one step, with FocuSFT and as plain SFT, for each scenario."""
    steps = {"steps": 1}
    return [
        (
            train(**steps, **scenario)["collectives"],
            train(**steps, **(scenario | {"options": PLAIN_SFT}))["collectives"],
        )
        for scenario in scenarios
    ]
