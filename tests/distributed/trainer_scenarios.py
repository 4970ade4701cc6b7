"""What the processes of the distributed tests of the trainer run."""

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import AutoModelForCausalLM

from focusft.training.config import FocuSFTConfig
from focusft.training.trainer import FocuSFTTrainer
from tests.tiny_models import tiny_model
from tests.training.test_trainer import dataset

MICRO_BATCHES = 4  # of all ranks together, in one step
ROWS = 24


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
    settings = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": MICRO_BATCHES // dist.get_world_size(),
        "learning_rate": 1e-3,
        "inner_lr": 0.1,
        "inner_rank": 4,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    if wrapper == "fsdp2":
        settings |= {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": state_dict}}
    args = FocuSFTConfig(**(settings | options))
    if wrapper == "fsdp2":
        # accelerate shards on accelerators only; these processes pass for such.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    run = FocuSFTTrainer(
        model=tiny_model("llama", tie_word_embeddings=tied),
        args=args,
        train_dataset=dataset(ROWS),
    )
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
        "weights": {name: weight.clone() for name, weight in trained.items()},
        "saved_as_trained": saved.keys() == trained.keys()
        and all(torch.equal(saved[name], trained[name]) for name in saved),
    }
