"""Make a workspace at W&B for the runs of a project: accuracy, layers, time and workers, a section for each.

    python scripts/wandb_dashboard.py --project secateur                      make it, and print its address
    python scripts/wandb_dashboard.py --project secateur --spec FILE.json     write what would be sent, without an account

Needs the extra `dashboard` (wandb-workspaces).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from orchestrator.tracking.wandb import has_credentials


def dashboard(entity: str, project: str, name: str) -> Any:
    """Returns the workspace."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    def lines(title: str, curve: str, *keys: str) -> Any:
        return panels.LinePlot(title=title, x=f"{curve}_curve/step", y=[f"{curve}_curve/{key}" for key in keys])

    def points(title: str, x: str, y: str = "accuracy") -> Any:
        return panels.ScatterPlot(title=title, x=panels.SummaryMetric(x), y=panels.SummaryMetric(y))

    def bars(title: str, *metrics: str) -> Any:
        return panels.BarPlot(title=title, metrics=list(metrics))

    def chart(kind: str, table: str, **fields: str) -> Any:
        query = {"summaryTable": {"tableKey": table}}
        return panels.CustomChart(query=query, chart_name=f"wandb/{kind}/v0", chart_fields=fields)

    sections = {
        "Accuracy": [
            bars("Accuracy of the dense and of the final model", "dense_accuracy", "accuracy"),
            points("Accuracy against sparsity", "sparsity"),
            points("Accuracy against multiply-adds", "size/final_macs"),
            points("Accuracy against the file", "size/file_bytes"),
            chart("scatter", "accuracy_against_size_table", x="nonzero_parameters", y="accuracy"),
            lines("Recovery: loss", "recovery", "loss"),
            lines("Training of the dense model: loss", "dense", "loss"),
        ],
        "Layers": [
            panels.WeavePanelSummaryTable(table_name="layers"),
            points("Increase of the calibration loss: predicted and measured", "loss_increase/predicted", "loss_increase/measured"),
        ],
        "Time": [
            bars("Images per second", "speed/dense_images_per_second", "speed/final_images_per_second", "speed/sparse_images_per_second"),
            bars("Milliseconds of a forward pass", "latency/dense_ms", "latency/final_ms"),
            points("Accuracy against milliseconds", "latency/final_ms"),
            chart("lineseries", "staircase_lines_table", step="step", lineKey="lineKey", lineVal="lineVal"),
            bars("Seconds of the stages", *(f"seconds/{stage}" for stage in ("collect", "score", "solve", "recover"))),
        ],
        "Workers": [
            chart("bar", "worker_utilisation_table", label="process", value="busy"),
            panels.WeavePanelSummaryTable(table_name="workers"),
        ],
    }
    made = [workspaces.Section(name=title, panels=content, is_open=title == "Accuracy") for title, content in sections.items()]
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=made)


def specification(workspace: Any) -> dict[str, Any]:
    """Returns what is sent to W&B."""
    sent: dict[str, Any] = json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="secateur", help="project of the runs (tracking.project)")
    parser.add_argument("--entity", default="", help="user or team; by default your own")
    parser.add_argument("--name", default="Pruning", help="name of the workspace")
    parser.add_argument("--spec", type=Path, help="write the specification to this file instead of sending it")
    given = parser.parse_args()
    if given.spec is None and not has_credentials():
        sys.exit("error: W&B needs credentials (WANDB_API_KEY or netrc); --spec FILE.json writes the specification without them")
    try:
        workspace = dashboard(given.entity, given.project, given.name)
    except ModuleNotFoundError as error:
        sys.exit(f"error: it needs the package wandb-workspaces ({error}): pip install 'secateur[dashboard]'")
    if given.spec is None:
        workspace.save()
        print(workspace.url)
    else:
        given.spec.write_text(json.dumps(specification(workspace), indent=1), encoding="utf-8")
        print(given.spec)


if __name__ == "__main__":
    main()
