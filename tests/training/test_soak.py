"""Two thousand steps: memory stays flat, and nothing is left behind."""

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from tests.tiny_models import tiny_model
from tests.training.test_trainer import dataset, trainer

STEPS = 2000
SETTLED = 500


class Meter(TrainerCallback):
    """Resident memory, open files, threads and children of this process, now and then."""

    def __init__(self):
        self.readings = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % 100:
            return
        gc.collect()
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        self.readings.append(
            {
                "step": state.global_step,
                "mb": int(Path("/proc/self/statm").read_text().split()[1])
                * os.sysconf("SC_PAGE_SIZE")
                / 1e6,
                "files": len(os.listdir("/proc/self/fd")),
                "threads": len(os.listdir("/proc/self/task")),
                "children": len(children),
                "tensors": sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()),
            }
        )


def hooks(model):
    return sum(
        len(table)
        for module in model.modules()
        for name, table in vars(module).items()
        if name.endswith("_hooks") and table
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc of Linux")
def test_two_thousand_steps_leave_nothing_behind(tmp_path, capsys):
    model = tiny_model("llama")
    hooks_before = hooks(model)
    run = trainer(
        tmp_path,
        model=model,
        max_steps=STEPS,
        logging_steps=50,
        save_strategy="steps",
        save_steps=200,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=200,
        dataloader_num_workers=1,
    )
    run.train_dataset = Dataset.from_list(list(dataset(12)) * 40)
    meter = Meter()
    run.add_callback(meter)
    run.train()
    assert hooks(model) > hooks_before
    run.engine.detach()
    # The hook that checkpointing puts on the embeddings is that of transformers, in any training.
    model.disable_input_require_grads()
    with capsys.disabled():
        print()
        for reading in meter.readings:
            print(json.dumps(reading))
    settled = [reading for reading in meter.readings if reading["step"] >= SETTLED]
    first, last = settled[0], settled[-1]
    assert last["step"] == STEPS
    assert last["mb"] - first["mb"] < 0.03 * first["mb"]
    for what in ("files", "threads", "children"):
        assert last[what] <= first[what] + 1, what
    # The log grows, the tensors do not.
    assert last["tensors"] <= first["tensors"] + 5
    assert hooks(model) == hooks_before
    assert model.config._attn_implementation == tiny_model("llama").config._attn_implementation
