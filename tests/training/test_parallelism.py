"""Ways of spreading a run that are not covered are refused before the first step."""

from types import SimpleNamespace

import pytest
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType

from focusft.errors import ConfigError
from focusft.training.parallelism import refuse_data_parallel, refuse_parallelism

FSDP2 = {
    "fsdp_version": 2,
    "activation_checkpointing": False,
    "cpu_ram_efficient_loading": False,
}


def accelerator(kind=DistributedType.NO, parallelism=None, **plugins):
    plugins = {name: SimpleNamespace(**settings) for name, settings in plugins.items()}
    return SimpleNamespace(
        distributed_type=kind, parallelism_config=parallelism, state=SimpleNamespace(**plugins)
    )


def fsdp(**settings):
    return accelerator(DistributedType.FSDP, fsdp_plugin=FSDP2 | settings)


REFUSED = {
    "context and sequence": accelerator(parallelism=ParallelismConfig(cp_size=2)),
    "tensor": accelerator(parallelism=ParallelismConfig(tp_size=2)),
    "ZeRO-3": accelerator(DistributedType.DEEPSPEED, deepspeed_plugin={"zero_stage": 3}),
    "fsdp_version": fsdp(fsdp_version=1),
    "fsdp_activation_checkpointing": fsdp(activation_checkpointing=True),
    "fsdp_cpu_ram_efficient_loading": fsdp(cpu_ram_efficient_loading=True),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_line(words):
    with pytest.raises(ConfigError, match=words) as caught:
        refuse_parallelism(REFUSED[words])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_GPU])
def test_one_process_and_ddp_pass(kind):
    refuse_parallelism(accelerator(kind))
    refuse_parallelism(accelerator(kind, ParallelismConfig()))


def test_fsdp2_passes():
    refuse_parallelism(fsdp())


def test_several_gpus_in_one_process_are_refused():
    refuse_data_parallel(1)
    with pytest.raises(ConfigError, match="torchrun --nproc_per_node 2"):
        refuse_data_parallel(2)
