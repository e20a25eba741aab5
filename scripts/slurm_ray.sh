#!/usr/bin/env bash
# Run an experiment on the nodes of a Slurm job:
#   sbatch --nodes=2 --gpus-per-node=8 scripts/slurm_ray.sh +experiment=dino_vitg_50pct output=/shared/runs cluster.workers=16
#SBATCH --job-name=secateur
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
set -euo pipefail

port=6379
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')

# Every node of the job gets the same token, so that nobody else can use its Ray.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --node-ip-address="$address" --port="$port" --block &
sleep 15
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    srun --nodes="$others" --ntasks="$others" --exclude="$head" ray start --address="$address:$port" --block &
fi
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" python -m orchestrator "$@" cluster.address="$address:$port"
