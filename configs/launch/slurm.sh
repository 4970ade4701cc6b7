#!/bin/bash
# Several nodes with Slurm: one torchrun on each node.
#   sbatch --nodes 4 configs/launch/slurm.sh configs/qwen2.5-7b-fsdp2.yaml --gradient_accumulation_steps 1
# Without Slurm, run the torchrun line on each node, with the first node's address.
# With N nodes divide gradient_accumulation_steps by N, so that the batch stays 32.
# Not measured by us: needs GPUs.
#SBATCH --job-name=focusft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
# Slurm sends SIGTERM this long before the limit.
#SBATCH --signal=TERM@300

set -euo pipefail
config=$1
shift
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
  --nnodes "$SLURM_NNODES" \
  --nproc_per_node 8 \
  --rdzv_id "$SLURM_JOB_ID" \
  --rdzv_backend c10d \
  --rdzv_endpoint "$first_node:29500" \
  -m focusft train --config "$config" "$@"
