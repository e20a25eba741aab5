"""Ways to damage a model file, or to write one that asks for what a file must not get. Digests fit unless a case says so."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from model_file_cases import inside, rewritten, spec_of

from workers.files import read_tensors, write_tensors

MASKED = "blocks.0.mlp.fc1"
TIMM, SHRUNK, WIDENED = (f"workers.models.{name}" for name in ("timm.TimmModel", "shrunk.ShrunkModel", "widened.WidenedModel"))
CHOICE = {"include": ["*"], "exclude": [], "stem_and_head": False}
OWN = {"target": "os.system", "arguments": {"command": "touch trap"}, "checkpoint": None, "classifier": True, "stem_and_heads": []} | CHOICE
Case = Callable[[Path], Any]


def of_spec(change: Callable[[dict], dict]) -> Case:
    return lambda path: rewritten(path, spec=change)


def of_settings(**changes: Any) -> Case:
    return of_spec(inside(**changes))


def of_arguments(**changes: Any) -> Case:
    return of_spec(lambda spec: inside(arguments=spec["settings"]["arguments"] | changes)(spec))


def of_family(target: Any, **settings: Any) -> Case:
    return of_spec(lambda spec: spec | {"family": target, "settings": {"checkpoint": None} | settings})


def of_library(name: str, library: str, settings: dict[str, Any] | None = None, **arguments: Any) -> Case:
    return of_family(f"workers.models.{library}", name=name, arguments=arguments, **CHOICE, **(settings or {}))


def of_transformers(name: str, **arguments: Any) -> Case:
    settings = {"name": name, "arguments": arguments, "classifier": False} | CHOICE
    return of_family("workers.models.transformers.TransformersModel", **settings)


def around(target: str, times: int = 1, **settings: Any) -> Case:
    """The family inside others."""

    def wrapped(spec: dict) -> dict:
        for _ in range(times):
            inner = {"checkpoint": None, "family": spec["family"], "settings": spec["settings"]}
            spec = spec | {"family": target, "settings": inner | settings}
        return spec

    return of_spec(wrapped)


def of_layer(name: str = MASKED, **changes: Any) -> Case:
    return of_spec(lambda spec: spec | {"layers": spec["layers"] | {name: spec["layers"].get(name, {}) | changes}})


def of_tensors(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Case:
    """Changes the parts of the masked layer, with digests that fit."""
    return lambda path: rewritten(
        path,
        lambda tensors: (
            tensors | {f"{MASKED}.weight.{part}": change(tensors[f"{MASKED}.weight.{part}"]) for part, change in changes.items()}
        ),
    )


def with_entry(name: str, index: int, value: float) -> Case:
    def changed(tensors: dict) -> dict:
        tensor = tensors[name].clone()
        tensor.view(-1)[index] = value
        return tensors | {name: tensor}

    return lambda path: rewritten(path, changed)


def unsigned(change: Callable[[dict, dict], None]) -> Case:
    """Changes tensors and spec in place, and leaves the digests as they were."""

    def spoil(path: Path) -> None:
        tensors, spec = {name: tensor.clone() for name, tensor in read_tensors(path).items()}, spec_of(path)
        change(tensors, spec)
        write_tensors(path, tensors, {"secateur": json.dumps(spec)})

    return spoil


def of_text(change: Callable[[str], str]) -> Case:
    """Changes the text of the spec."""
    return lambda path: write_tensors(
        path, {name: tensor.clone() for name, tensor in read_tensors(path).items()}, {"secateur": change(json.dumps(spec_of(path)))}
    )


def of_bytes(change: Callable[[bytes], bytes]) -> Case:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def of_header(change: Callable[[dict], Any]) -> Case:
    """Changes the header of safetensors itself."""

    def changed(content: bytes) -> bytes:
        header, data = parts(content)
        text = change(header)
        text = (text if isinstance(text, str) else json.dumps(text)).encode()
        return struct.pack("<Q", len(text)) + text + data

    return of_bytes(changed)


def entry(name: str, **changes: Any) -> Case:
    return of_header(lambda header: header | {name: header[name] | changes})


def deep(levels: int) -> dict:
    nested: dict = {}
    for _ in range(levels):
        nested = {"a": nested}
    return nested


BYTES: dict[str, Case] = {
    "empty": of_bytes(lambda content: b""),
    "eight bytes": of_bytes(lambda content: content[:8]),
    "cut in the header": of_bytes(lambda content: content[:100]),
    "cut in the tensors": of_bytes(lambda content: content[:-1]),
    "longer": of_bytes(lambda content: content + b"\0"),
    "header of 2^63 bytes": of_bytes(lambda content: struct.pack("<Q", 2**63) + content[8:]),
    "header of 2^40 bytes": of_bytes(lambda content: struct.pack("<Q", 2**40) + content[8:]),
    "header is no JSON": of_bytes(lambda content: content[:8] + b"\xff" * 50 + content[58:]),
    "header is a list": of_header(lambda header: []),
    "deep header": of_header(lambda header: "[" * 100_000),
    "a pickle": of_bytes(lambda content: b"cos\nsystem\n(S'touch trap'\ntR."),
    "overlapping tensors": entry("head.bias", data_offsets=[0, 40]),
    "negative offsets": entry("head.bias", data_offsets=[-40, 0]),
    "offsets of terabytes": entry("head.bias", data_offsets=[0, 2**42]),
    "a shape of terabytes": entry("head.bias", shape=[2**40]),
    "a shape that overflows": entry("head.bias", shape=[2**32, 2**32]),
    "a negative shape": entry("head.bias", shape=[-10]),
    "an unknown type": entry("head.bias", dtype="F99"),
    "another type of the same size": entry("head.bias", dtype="I32"),
    "metadata that is no text": of_header(lambda header: header | {"__metadata__": {"secateur": {"a": 1}}}),
    "no metadata": of_header(lambda header: {name: value for name, value in header.items() if name != "__metadata__"}),
    "one flipped bit in a weight": of_bytes(lambda content: content[:-5] + bytes([content[-5] ^ 64]) + content[-4:]),
    "a name that moved": of_header(lambda header: {("head.b" if name == "head.bias" else name): value for name, value in header.items()}),
}

SPEC: dict[str, Case] = {
    "spec is a list": of_text(lambda text: "[1, 2]"),
    "spec is a number": of_text(lambda text: "3"),
    "spec is empty": of_text(lambda text: ""),
    "spec is cut": of_text(lambda text: text[:200]),
    "spec is deep": of_text(lambda text: "[" * 200_000),
    "spec is huge": of_text(lambda text: text[:-1] + ', "a": "' + "a" * 2**23 + '"}'),
    "spec has a key twice": of_text(lambda text: text[:-1] + ', "family": "os.system"}'),
    "spec has NaN": of_text(lambda text: text.replace('"img_size": 16', '"img_size": NaN')),
    "spec has a huge number": of_text(lambda text: text.replace('"img_size": 16', '"img_size": ' + "9" * 5000)),
    "spec without its digest": unsigned(lambda tensors, spec: spec.pop("sha256")),
    "spec with another digest": unsigned(lambda tensors, spec: spec.update(sha256="0" * 64)),
    "spec with one other letter": of_text(lambda text: text.replace("vit_tiny_patch16_224", "vit_tiny_patch16_384")),
    "spec of a later format": of_spec(lambda spec: spec | {"format": "secateur/9"}),
    "format is a list": of_spec(lambda spec: spec | {"format": ["secateur/2"]}),
    "no family": of_spec(lambda spec: {key: value for key, value in spec.items() if key != "family"}),
    "family is a number": of_spec(lambda spec: spec | {"family": 3}),
    "settings are a list": of_spec(lambda spec: spec | {"settings": ["name"]}),
    "layers are a list": of_spec(lambda spec: spec | {"layers": [MASKED]}),
    "no layers": of_spec(lambda spec: {key: value for key, value in spec.items() if key != "layers"}),
    "digests of other tensors": unsigned(lambda tensors, spec: spec["tensors"].pop("head.bias")),
    "digests are numbers": unsigned(lambda tensors, spec: spec.update(tensors=dict.fromkeys(spec["tensors"], 3))),
    "nested beyond the recursion limit": of_arguments(act_layer=deep(900)),
}

TENSORS: dict[str, Case] = {
    "reversed mask": unsigned(lambda tensors, spec: tensors.update({f"{MASKED}.weight.mask": tensors[f"{MASKED}.weight.mask"].flip(0)})),
    "mask of zeros": of_tensors(mask=torch.zeros_like),
    "mask of ones": of_tensors(mask=lambda mask: torch.full_like(mask, 255)),
    "shorter mask": of_tensors(mask=lambda mask: mask[:-1]),
    "mask of another type": of_tensors(mask=lambda mask: mask.float()),
    "mask of two dimensions": of_tensors(mask=lambda mask: mask.reshape(2, -1)),
    "fewer values": of_tensors(values=lambda values: values[:-1]),
    "more values": of_tensors(values=lambda values: torch.cat([values, values])),
    "values without dimensions": of_tensors(values=lambda values: values[0]),
    "values of integers": of_tensors(values=lambda values: values.int()),
    "values in double precision": of_tensors(values=lambda values: values.double()),
    "layer without mask": lambda path: rewritten(path, lambda tensors: {n: t for n, t in tensors.items() if not n.endswith(".mask")}),
    "layer without values": lambda path: rewritten(path, lambda tensors: {n: t for n, t in tensors.items() if not n.endswith(".values")}),
    "layer with a whole weight beside": lambda path: rewritten(path, lambda tensors: tensors | {f"{MASKED}.weight": torch.zeros(64, 32)}),
    "layer that is not there": of_layer("blocks.9.mlp.fc1", shape=[1], kept=1, of=1),
    "layer with a shape of terabytes": of_layer(shape=[2**20, 2**20], of=2**40),
    "layer with a negative shape": of_layer(shape=[-64, -32]),
    "layer with a shape of text": of_layer(shape="64"),
    "layer with another shape": of_layer(shape=[32, 64]),
    "layer with other counts": of_layer(kept=3),
    "layer with a count of text": of_layer(kept="3"),
    "layer with unknown entries": of_layer(colour="red"),
    "layer is a number": of_spec(lambda spec: spec | {"layers": {MASKED: 3}}),
    "NaN": with_entry("head.bias", 3, float("nan")),
    "infinity": with_entry("head.bias", 3, float("inf")),
    "infinity in a parameter of another name": with_entry("cls_token", 3, float("inf")),
    "NaN among values": with_entry(f"{MASKED}.weight.values", 0, float("nan")),
    "missing tensor": lambda path: rewritten(path, lambda tensors: {name: t for name, t in tensors.items() if name != "head.bias"}),
    "unknown tensor": lambda path: rewritten(path, lambda tensors: tensors | {"../../tail": torch.zeros(3)}),
    "tensor of another shape": lambda path: rewritten(path, lambda tensors: tensors | {"head.bias": torch.zeros(11)}),
    "tensor in half precision": lambda path: rewritten(path, lambda tensors: tensors | {"head.bias": torch.zeros(10).half()}),
}

FAMILY: dict[str, Case] = {
    "a function of the system": of_family("os.system", command="touch trap"),
    "a module of the user": of_family("trap.Family"),
    "a module that does not exist": of_family("workers.models.nowhere.Family"),
    "a path as a family": of_family("workers.models.../../trap.Family"),
    "a module above": of_family("workers.models.timm.library.created"),
    "a function of ours": of_family("workers.models.checkpoints.load", checkpoint=None),
    "an abstract class": of_family("workers.models.base.ModelFamily"),
    "a dunder": of_family("workers.models.timm.__builtins__"),
    "an empty name": of_family(""),
    "a file elsewhere": of_family("workers.models.exported.Exported", checkpoint="/etc/passwd", include=["*"], exclude=[]),
    "weights elsewhere": of_settings(checkpoint="/etc/passwd"),
    "weights of the hub": of_settings(checkpoint="hf-hub:nobody/nothing"),
    "weights elsewhere in a family inside": around(SHRUNK, settings={"checkpoint": "pretrained"}, family=TIMM),
    "an own model": of_spec(lambda spec: spec | {"family": "workers.models.own.OwnModel", "settings": OWN}),
    "unknown settings": of_settings(colour="red"),
    "settings of other types": of_settings(include="*", name=3),
    "a name that is a list": of_settings(name=["vit_tiny_patch16_224"]),
    "a name of a megabyte": of_settings(name="a" * 2**20),
    "a name of the hub": of_settings(name="hf-hub:nobody/nothing"),
    "a name with a folder": of_settings(name="local-dir:/etc"),
    "pretrained": of_arguments(pretrained=True),
    "checkpoint_path": of_arguments(checkpoint_path="/etc/passwd"),
    "pretrained_cfg": of_arguments(pretrained_cfg={"url": "http://127.0.0.1:9/w.pth", "file": "/etc/passwd"}),
    "features_only": of_arguments(features_only=True),
    "a layer by a name of a module": of_arguments(norm_layer="os.system"),
    "a negative depth": of_arguments(depth=-1, embed_dim=-3),
    "a depth of text": of_arguments(depth="12"),
    "no heads": of_arguments(num_heads=0),
    "an unknown argument": of_arguments(colour="red"),
    "weights of torchvision": of_library("resnet18", "torchvision.TorchvisionModel", weights="DEFAULT"),
    "pretrained of torchvision": of_library("resnet18", "torchvision.TorchvisionModel", pretrained=True),
    "classes of text": of_library("resnet18", "torchvision.TorchvisionModel", num_classes="a"),
    "a detector with weights": of_library("ssd300_vgg16", "detection.DetectionModel", {"image_size": 64}, weights_backbone="DEFAULT"),
    "transformers with a backbone of the hub": of_transformers("upernet", backbone="nobody/nothing", use_timm_backbone=False),
    "transformers with code of the hub": of_transformers("vit", auto_map={"AutoModel": "nobody/nothing--model.Model"}),
    "transformers with a kernel of the hub": of_transformers("vit", _attn_implementation="kernels-community/flash-attn"),
    "transformers with an unknown type": of_transformers("nothing"),
    "families in each other": around(SHRUNK, times=40),
    "widened families in each other": around(WIDENED, times=10, widths={"*": 1.0}, input_shape=[1, 16, 16]),
    "a family of itself": around(SHRUNK, family=SHRUNK),
    "widened for images of terabytes": around(WIDENED, widths={"*": 2.0}, input_shape=[1, 2**20, 2**20]),
    "widened by text": around(WIDENED, widths={"*": "a"}, input_shape=[1, 16, 16]),
    "widened a billion times": around(WIDENED, widths={"*": 1e9}, input_shape=[1, 16, 16]),
    "smaller tensors of unknown names": around(SHRUNK, shapes={"tail.weight": [3]}),
    "smaller tensors that are methods": around(SHRUNK, shapes={"forward": [3], "__class__": [3]}),
    "a smaller tensor of terabytes": around(SHRUNK, shapes={"head.weight": [2**20, 2**20]}),
    "a smaller tensor of negative size": around(SHRUNK, shapes={"head.weight": [-1, 3]}),
    "a smaller tensor of text": around(SHRUNK, shapes={"head.weight": "ab"}),
    "numbers of modules that are text": around(SHRUNK, sizes={"blocks.0.attn.num_heads": "os.system"}),
    "numbers that no module has": around(SHRUNK, sizes={"blocks.0.attn.forward": 3}),
    "heads of no module": around(SHRUNK, narrow={"blocks.7": [1, 2]}),
    "heads without a number": around(SHRUNK, narrow={"blocks.0.attn": []}),
}

SIZES: dict[str, Case] = {  # of models that nothing can hold
    "a depth of 10^8": of_arguments(depth=10**8),
    "a depth of 4 * 10^6": of_arguments(depth=4 * 10**6),
    "a depth of 10^5": of_arguments(depth=10**5),
    "a width of 4 * 10^6": of_arguments(embed_dim=4 * 10**6, num_heads=1),
    "a width of 10^7": of_arguments(embed_dim=10**7, num_heads=1),
    "10^9 classes": of_arguments(num_classes=10**9),
    "4 * 10^6 classes": of_arguments(num_classes=4 * 10**6, embed_dim=2**12),
    "images of 4 * 10^6 pixels a side": of_arguments(img_size=4 * 10**6),
    "10^6 blocks": of_library("resnet18", "timm.TimmModel", layers=[2**20] * 4),
    "RegNets of 4 * 10^6 classes": of_library("regnet_y_400mf", "torchvision.TorchvisionModel", num_classes=4 * 10**6),
    "a detector of huge images": of_library("ssd300_vgg16", "detection.DetectionModel", {"image_size": 2**20}),
    "4 * 10^6 layers of transformers": of_transformers("dinov2", num_hidden_layers=4 * 10**6),
    "4 * 10^6 names of classes": of_transformers("vit", num_labels=4 * 10**6),
    "tensors of a shrunk model": around(SHRUNK, shapes={"head.weight": [2**31 - 1, 2**20]}),
}

REFUSED = {
    f"{kind}: {name}": case
    for kind, cases in (("bytes", BYTES), ("spec", SPEC), ("tensors", TENSORS), ("family", FAMILY))
    for name, case in cases.items()
}
