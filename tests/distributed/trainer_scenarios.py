"""What the processes of the distributed tests of the trainer run."""

from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import AutoModelForCausalLM, TrainerCallback

from focusft.training.config import FocuSFTConfig
from focusft.training.trainer import FocuSFTTrainer
from focusft.training.watchdogs import TrainingStopped
from tests.tiny_models import tiny_model
from tests.training.test_trainer import dataset

MICRO_BATCHES = 4  # of all ranks together, in one step
ROWS = 24


def make_trainer(folder, options, tied=False, **kwargs):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": MICRO_BATCHES // dist.get_world_size(),
        "learning_rate": 1e-3,
        "inner_lr": 0.1,
        "inner_rank": 4,
        "logging_steps": 1,
        "save_strategy": "steps",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = FocuSFTConfig(**(settings | options))
    if "fsdp" in options:
        # accelerate shards on accelerators only; these processes pass for such.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return FocuSFTTrainer(
        model=tiny_model("llama", tie_word_embeddings=tied),
        args=args,
        train_dataset=dataset(ROWS),
        **kwargs,
    )


def train(folder, wrapper="none", tied=False, resume=None, state_dict="FULL_STATE_DICT", **options):
    """Losses of the steps, and largest difference of the saved model from the trained one.

    Args:
        folder: Output folder of the run.
        wrapper: none, ddp or fsdp2.
        tied: Tie the embeddings.
        resume: Checkpoint to go on from.
        state_dict: How FSDP2 saves within checkpoints.
        options: More training options.
    """
    if wrapper == "fsdp2":
        fsdp_config = {"version": 2, "state_dict_type": state_dict}
        options = {"fsdp": True, "fsdp_config": fsdp_config} | options
    run = make_trainer(folder, {"max_steps": 4, "save_steps": 2} | options, tied)
    run.train(resume_from_checkpoint=resume)
    run.save_model()
    trained = {
        name: weight.full_tensor() if hasattr(weight, "full_tensor") else weight.detach()
        for name, weight in run.model.named_parameters()
    }
    dist.barrier()
    saved = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    return {
        "losses": [entry["loss"] for entry in run.state.log_history if "loss" in entry],
        "inner_losses": [e["inner_loss_0"] for e in run.state.log_history if "loss" in e],
        "weights": {name: weight.clone() for name, weight in trained.items()},
        "saved_as_trained": saved.keys() == trained.keys()
        and all(torch.equal(saved[name], trained[name]) for name in saved),
    }


def validate(folder):
    """The figures of validation, and whether the best checkpoint was loaded at the end.

    Five rows: two processes with two rows a batch have no batches of the same sizes.
    """
    settings = {
        "max_steps": 4,
        "learning_rate": 0.02,
        "save_steps": 1,
        "logging_steps": 1,
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "per_device_eval_batch_size": 2,
    }
    run = make_trainer(folder, settings, eval_dataset=dataset(5))
    run.train()
    best = Path(run.state.best_model_checkpoint)
    weights = AutoModelForCausalLM.from_pretrained(best).state_dict()
    return {
        "eval": [
            {name: value for name, value in entry.items() if not name.endswith("_runtime")}
            for entry in run.state.log_history
            if "eval_loss" in entry
        ],
        "best": best.name,
        "is_best": all(
            torch.equal(weights[name], weight) for name, weight in run.model.state_dict().items()
        ),
    }


def spoil_one_rank(folder):
    """What a run says whose hidden states are not a number in one process at the third step."""

    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2 and args.process_index == 1:
                model.get_input_embeddings().register_forward_hook(
                    lambda *call: call[2] * float("nan")
                )

    run = make_trainer(folder, {"max_steps": 4, "save_strategy": "no"}, callbacks=[Spoil()])
    try:
        run.train()
    except TrainingStopped as stop:
        return str(stop)
