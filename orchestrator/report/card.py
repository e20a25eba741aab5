"""The model card of a run: what a folder for the hub says about its model."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.quantities import percent
from workers.errors import printable

LOADING = {
    "timm": 'import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
    "transformers": "from transformers import AutoModel{kind}\n\nmodel = AutoModel{kind}.from_pretrained(FOLDER).eval()",
    "secateur": 'from workers.export import load_pruned\n\nmodel = load_pruned("FOLDER/model.safetensors"{build})',
}
MEASURES = {"top1": "top-1", "knn": "k-NN", "map": "mAP", "agreement": "agreement with the dense model"}


def model_card(report: dict[str, Any] | None, library: str, name: str, classifier: bool, target: str | None) -> str:
    """Returns the card in Markdown.

    ``report`` is the content of a ``report.json``, or None if there is none. ``target`` is the user's own function that builds the model.
    """
    head = {"library_name": library, "tags": ["pruned", "secateur"]}
    kind = "ForImageClassification" if classifier else ""
    build = "" if target is None else f", build={target}" if is_dotted_name(target) else ", build=..."
    parts = [
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items()) + "---",
        f"# {_plain(name)}, pruned",
        *(_facts(report) if report is not None else []),
        "## Use",
        f"```python\n{LOADING[library].replace('{kind}', kind).replace('{build}', build)}\n```",
    ]
    if library != "secateur":
        parts.append(
            'Masked weights are stored as zeros. `load_pruned(FILE, runtime="sparse")` of secateur, on the `model.safetensors` of the run, '
            "skips them where that is faster."
        )
    return "\n\n".join(parts) + "\n"


def is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _plain(text: str) -> str:
    """Returns text as one line of Markdown that has no elements or links: the report may be somebody else's."""
    return printable(text).replace("<", "&lt;").replace("[", "\\[").replace("`", "\\`")


def _facts(report: dict[str, Any]) -> list[str]:
    asked = report["pruned_weights"] / report["prunable_weights"] if report["prunable_weights"] else None
    method = _plain(report["pruner"]) or "one method"
    masked = "" if asked is None else f" {percent(asked)} of its prunable weights are zero."
    dense, final = report.get("dense_size"), report.get("final_size")
    removed = ""
    if dense and final and dense != final:
        removed = f" Of {dense['parameters']:,} parameters, {final['parameters']:,} are left."
    keys = [key for key in MEASURES if any(key in stage["metrics"] for stage in report["stages"])]
    rows = ["| model | " + " | ".join(MEASURES[key] for key in keys) + " |", "|---|" + "---|" * len(keys)]
    for stage in report["stages"]:
        cells = (percent(stage["metrics"][key]) if key in stage["metrics"] else "" for key in keys)
        rows.append(f"| {_plain(stage['name'].replace('_', '-'))} | " + " | ".join(cells) + " |")
    samples = report["stages"][-1]["metrics"].get("test_samples")
    measured = f"Measured on {int(samples):,} test images. " if samples else ""
    warnings = [f"- {_plain(warning)}" for warning in report["warnings"]]
    return [
        f"Pruned with {method}.{masked}{removed}",
        "\n".join(rows),
        f"{measured}The command:\n\n```bash\n{printable(report['command']).replace('```', '')}\n```",
        *(["Warnings of the run:\n\n" + "\n".join(warnings)] if warnings else []),
    ]
