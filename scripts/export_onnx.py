"""Export the model of a finished run to ONNX, and check it with onnxruntime on test images of the data set that the settings name.

python scripts/export_onnx.py runs/NAME/model.safetensors model.onnx data=imagefolder data.root=pets data.image_size=224
"""

import argparse
from pathlib import Path

from orchestrator.composing import experiment_of
from workers.onnx_export import export_onnx, first_images

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("onnx", type=Path)
parser.add_argument("overrides", nargs="*", help="settings as for python -m orchestrator, which choose the images")
options = parser.parse_args()
data = experiment_of(options.overrides).data
data.check()
print(export_onnx(options.model, options.onnx, first_images(data)))
