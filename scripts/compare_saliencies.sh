#!/usr/bin/env bash
# All saliencies of whole units on the real cases: a quarter, half and three quarters of the multiply-adds, one-shot, three seeds; with
# RECOVER=0.5,0.75 also after recovery, at these. Prints one table per case.
#     bash scripts/compare_saliencies.sh [CASE ...]          (default: all; needs `make cases`)
# What was interrupted goes on where it was. SEEDS=0 for one seed; REMOVED=0.1,0.2; PRUNERS=taylor,sosp_h; THREADS=1 beside other work;
# more settings of all runs: SETTINGS="data.train_size=20000 …".
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
output=${OUTPUT:-runs/saliencies}
pruners=${PRUNERS:-unit_random,unit_magnitude,taylor,sosp_i,sosp_h}
cases=("$@")
[ ${#cases[@]} -gt 0 ] || cases=(digits fashion_resnet efficientnet_lite0 dinov2_vits)

for case in "${cases[@]}"; do
    # shellcheck disable=SC2206
    common=(+experiment="$case" cluster=local output="$output" seed="${SEEDS:-0,1,2}" ++pruner.target.of=macs ${SETTINGS:-})
    case "$case" in
        dinov2_vits) chosen=${PRUNERS:-unit_random,unit_magnitude,taylor,sosp_h} ;; # sosp_i needs a classifier
        *) chosen=$pruners ;;
    esac
    case "$case" in # their experiments set a target of single weights
        efficientnet_lite0 | dinov2_vits) common+=("~pruner.target.sparsity") ;;
    esac
    # Dense models are trained first, with the default threads: a training gang brings its own processes.
    "$python" -m orchestrator --multirun "${common[@]}" recovery=none cluster.threads=null pruner=unit_random pruner.target.removed=0.5
    "$python" -m orchestrator --multirun "${common[@]}" recovery=none cluster.threads="${THREADS:-$(nproc)}" pruner="$chosen" \
        pruner.target.removed="${REMOVED:-0.25,0.5,0.75}"
    if [ -n "${RECOVER:-}" ]; then
        "$python" -m orchestrator --multirun "${common[@]}" cluster.threads=null pruner="$chosen" pruner.target.removed="$RECOVER"
    fi
done
"$python" -m orchestrator.compare "$output"/*/report.json --grid
[ -z "${RECOVER:-}" ] || "$python" -m orchestrator.compare "$output"/*/report.json
