#!/usr/bin/env bash
# Ways to a latency budget on one case: Taylor squared, as the paper has it, and SOSP-H, by an exact knapsack over measured tables; the
# paper's with its own solver; all groups narrowed alike; and by multiply-adds instead of time; with RECOVER=1 also recovered. Residual
# streams may be narrowed too.
#     bash scripts/compare_budgets.sh [EXPERIMENT]          (default: fashion_resnet; needs `make cases`)
# SEEDS=0,1,2 for more than one; REMOVED, MACS: fractions of the time, of the multiply-adds;
# SETTINGS="latency.batch_size=1 …" for all runs. What was interrupted goes on where it was. Timing wants an idle machine.
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
    local halp=("${run[@]}" pruner=halp pruner.target.within="${WITHIN:-0.03}" pruner.target.removed="${REMOVED:-0.2,0.35,0.5}")
    "${halp[@]}" pruner.target.solver=exact,uniform
    "${halp[@]}" pruner.target.solver=exact,greedy pruner.squared=false pruner.target.min_fraction=0
    "${run[@]}" pruner=sosp_h ++pruner.target.of=latency ++pruner.target.solver=exact ++pruner.target.within="${WITHIN:-0.03}" \
        pruner.target.removed="${REMOVED:-0.2,0.35,0.5}"
    "${run[@]}" pruner=taylor ++pruner.target.of=macs ++pruner.target.solver=exact pruner.squared=true \
        pruner.target.removed="${MACS:-0.6,0.8,0.9}"
    "${run[@]}" pruner=taylor ++pruner.target.of=macs ++pruner.target.solver=ranking pruner.target.removed="${MACS:-0.6,0.8,0.9}"
}
if [ -z "${RECOVER:-}" ]; then sweep recovery=none; else sweep; fi
