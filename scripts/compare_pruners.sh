#!/usr/bin/env bash
# All pruners, one-shot, on the real cases: 50/60/75/90 % and 2:4, three seeds. Prints one table per case.
#     bash scripts/compare_pruners.sh [CASE ...]          (default: all four; needs `make cases`)
# What was interrupted goes on where it was. SEEDS=0 for one seed; THREADS=1 beside other work; more settings of all runs:
# SETTINGS="data.test_size=500 …".
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
output=${OUTPUT:-runs/comparison}
pruners=${PRUNERS:-magnitude,wanda,sparsegpt,obc,woodfisher,cap,guided}
cases=("$@")
[ ${#cases[@]} -gt 0 ] || cases=(digits fashion_convnext efficientnet_lite0 dinov2_vits)

for case in "${cases[@]}"; do
    # shellcheck disable=SC2206
    common=(+experiment="$case" cluster=local recovery=none output="$output" seed="${SEEDS:-0,1,2}" ${SETTINGS:-})
    # Dense models are trained first, with the default threads: a training gang brings its own processes.
    "$python" -m orchestrator --multirun "${common[@]}" cluster.threads=null pruner=magnitude pruner.target.sparsity=0.5
    "$python" -m orchestrator --multirun "${common[@]}" cluster.threads="${THREADS:-$(nproc)}" pruner="$pruners" pruner.target.sparsity=0.5,0.6,0.75,0.9
    dividing=()
    case "$case" in # depthwise layers have one input channel: no four neighbours to choose from
        efficientnet_lite0 | fashion_convnext) dividing=("model.exclude=['*conv_dw*']") ;;
    esac
    "$python" -m orchestrator --multirun "${common[@]}" cluster.threads="${THREADS:-$(nproc)}" "${dividing[@]}" \
        pruner="$pruners" pruner.target.pattern=2:4 pruner.target.sparsity=0.5
done
"$python" -m orchestrator.compare "$output"/*/report.json --grid
