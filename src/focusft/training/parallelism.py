"""Which ways of spreading a run over processes are covered: DDP and FSDP2."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType

from focusft.errors import ConfigError


def refuse_data_parallel(gpus: int) -> None:
    """Refuse what transformers does with several GPUs in one process.

    Args:
        gpus: `n_gpu` of the training arguments.

    Raises:
        ConfigError: There are several.
    """
    if gpus > 1:
        raise ConfigError(
            f"{gpus} GPUs in one process would use DataParallel, which copies the model without "
            f"its hooks; launch with 'torchrun --nproc_per_node {gpus}' or set "
            "CUDA_VISIBLE_DEVICES=0"
        )


def refuse_parallelism(accelerator: Accelerator) -> None:
    """Refuse what would train something else, or fail late, before any step is taken.

    Args:
        accelerator: Set up by the options, by `accelerate launch` or by its YAML.

    Raises:
        ConfigError: The setup is not covered.
    """
    parallelism = accelerator.parallelism_config
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ConfigError(
            "parallelism_config: context and sequence parallelism replace the attention mask "
            "without a word; use DDP or FSDP2"
        )
    if parallelism is not None and parallelism.tp_enabled:
        raise ConfigError(
            "parallelism_config: tensor parallelism splits the linear maps that get fast weights; "
            "use DDP or FSDP2"
        )
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED and accelerator.state.deepspeed_plugin.zero_stage == 3:
        raise ConfigError(
            "deepspeed: ZeRO-3 partitions the parameters where the inner loop cannot gather them; "
            "use FSDP2 (fsdp: true)"
        )
    if kind != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ConfigError(
            f"fsdp_version: {plugin.fsdp_version} frees the layers that the inner loop runs; set "
            "it to 2"
        )
    if plugin.activation_checkpointing:
        raise ConfigError(
            "fsdp_activation_checkpointing: would run the inner loop again in the backward pass; "
            "turn it off and set activation_checkpointing or selective_checkpointing"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading: leaves the model empty on all processes but one, "
            "where FocuSFT checks it before training; set it to false"
        )
