"""Every recipe in configs/ is one that `focusft train`, accelerate or bash takes."""

import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from focusft.training.config import load_train_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Those of `focusft study` hold arms; tests/study/test_config.py reads them.
RECIPES = [
    path
    for path in sorted(CONFIGS.glob("*.yaml"))
    if "arms" not in yaml.safe_load(path.read_text())
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_train_takes_the_recipe(path):
    config = load_train_config(path, ["--use_cpu", "true"])
    for name, value in yaml.safe_load(path.read_text()).items():
        if name not in ("accelerator_config", "fsdp_config", "gradient_checkpointing"):
            assert vars(config)[name] == value


def test_fsdp_is_version_2():
    config = load_train_config(CONFIGS / "qwen2.5-7b-fsdp2.yaml", ["--use_cpu", "true"])
    assert config.fsdp_plugin_args["fsdp_version"] == 2
    assert not config.fsdp_plugin_args["cpu_ram_efficient_loading"]
    assert config.accelerator_config.gradient_accumulation_kwargs == {"sync_each_batch": True}


def test_accelerate_takes_its_yaml():
    config = load_config_from_file(str(CONFIGS / "accelerate" / "fsdp2.yaml"))
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.distributed_type == "FSDP"


def test_bash_takes_the_slurm_script():
    script = CONFIGS / "launch" / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
