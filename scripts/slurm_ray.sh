#!/usr/bin/env bash
# Run an experiment on the nodes of a Slurm job. Submit from the environment that secateur is installed in:
#   sbatch --nodes=2 --gpus-per-node=8 scripts/slurm_ray.sh +experiment=dino_vitg_50pct output=/shared/runs …
#   sbatch --nodes=2 --gpus-per-node=8 scripts/slurm_ray.sh --multirun hydra/launcher=ray_shared seed=0,1 output=/shared/runs …
# Everything after the script's name goes to `python -m orchestrator`. `output` must be a folder that all nodes see.
# Nodes are taken whole and should be alike; --time, --partition and --account are your site's.
#SBATCH --job-name=secateur
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
set -euo pipefail

: "${SLURM_JOB_ID:?submit this script with sbatch}"
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node do not meet
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
step=(srun --overlap --cpus-per-task="$SLURM_CPUS_ON_NODE")
on_head=("${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head")
address=$("${on_head[@]}" hostname --ip-address | awk '{print $1; exit}'):$port

# Ray runs what anyone sends it: give the nodes of this job a secret of their own.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

# Its logs and sockets are in a folder that it opens to everybody: put that into one that only you can enter.
private=/tmp/secateur-$SLURM_JOB_ID
everywhere=("${step[@]}" --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES")
"${everywhere[@]}" mkdir -m 700 "$private"

trap 'kill $(jobs -p) 2>/dev/null || true; wait; "${everywhere[@]}" rm -rf "$private"' EXIT
"${on_head[@]}" ray start --head --node-ip-address="${address%:*}" --port="$port" --num-cpus="$SLURM_CPUS_ON_NODE" \
    --temp-dir="$private/ray" --include-dashboard=false --disable-usage-stats --block &
for ((try = 0; ; try++)); do
    "${on_head[@]}" ray health-check --address="$address" 2>/dev/null && break
    ((try < 30)) || { echo "Ray's head on $head did not come up at $address" >&2; exit 1; }
    sleep 2
done
others=$((SLURM_JOB_NUM_NODES - 1))
if ((others > 0)); then
    "${step[@]}" --nodes="$others" --ntasks="$others" --exclude="$head" \
        ray start --address="$address" --num-cpus="$SLURM_CPUS_ON_NODE" --temp-dir="$private/ray" --block &
fi

sweep=()
[[ ${1:-} != --multirun ]] || { sweep=(--multirun) && shift; } # goes before all settings

# A worker for each GPU of the job, unless the command line says otherwise. Ray is given cluster.wait_seconds to have them all.
workers=$((SLURM_JOB_NUM_NODES * ${SLURM_GPUS_ON_NODE:-0}))
((workers == 0)) || set -- "cluster.workers=$workers" "$@"
"${on_head[@]}" env RAY_ADDRESS="$address" python -m orchestrator "${sweep[@]}" "$@" cluster.address=auto
