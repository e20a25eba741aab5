#!/usr/bin/env bash
# Ways to a latency budget on one case: HALP's importance and SOSP-H, by an exact knapsack over measured tables, by HALP's own, down
# the ranking, and by multiply-adds instead of time; with RECOVER=1 also recovered. Residual streams may be narrowed too.
#     bash scripts/compare_budgets.sh [EXPERIMENT]          (default: fashion_resnet; needs `make cases`)
# SEEDS=0,1,2 for more than one; SETTINGS="latency.batch_size=1 …" for all runs. What was interrupted goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
output=${OUTPUT:-runs/budgets}
case=${1:-fashion_resnet}
common=(+experiment="$case" cluster=local cluster.threads="${THREADS:-1}" output="$output" seed="${SEEDS:-0}" compare=false)
# shellcheck disable=SC2206
common+=(pruner.streams=true ${SETTINGS:-})

sweep() {
    local run=("$python" -m orchestrator --multirun "${common[@]}" "$@")
    "${run[@]}" pruner=taylor,sosp_h ++pruner.target.of=latency ++pruner.target.solver=exact,greedy,ranking \
        ++pruner.target.within="${WITHIN:-0.03}"
    "${run[@]}" pruner=taylor,sosp_h ++pruner.target.of=macs ++pruner.target.solver=exact,ranking
    "${run[@]}" pruner=unit_random ++pruner.target.of=macs
}
sweep recovery=none pruner.target.removed="${REMOVED:-0.2,0.35,0.5}"
[ -z "${RECOVER:-}" ] || sweep pruner.target.removed="${REMOVED:-0.2,0.35,0.5}"
