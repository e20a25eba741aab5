#!/usr/bin/env bash
# Checks on one GPU, in less than eight minutes, what only a GPU can show, and writes it into check_gpu.json:
# the Triton kernels against the reference and the limits of the GPU, masks against those of a CPU, one block of a ViT-g against the plan,
# and 2:4 layers against dense ones. Uses the torch that is installed; needs no network, no weights and no data.
#     bash scripts/check_gpu.sh [OUTPUT]                  (PYTHON=python3.12 for another interpreter)
set -uo pipefail
cd "$(dirname "$0")/.."
output=${1:-check_gpu.json}
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 exec timeout 470 "${PYTHON:-python3}" scripts/check_gpu.py --output "$output"
