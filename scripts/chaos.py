"""Lets small runs fall at random moments, and checks that a fall costs time and nothing else.

    python scripts/chaos.py [--seeds 0-49] [--only 17] [--reference local] [--write falls.json] [--folder FOLDER] [--patience SECONDS]

Each kind of run is carried out undisturbed, once, or with --reference on one cluster only, since all give equal bytes. For each seed the
same command is then started in a folder of its own, with cluster=local (even seeds) or cluster=ray, and falls one to three times: at a
stage and a moment that the seed draws, a part of the run that it draws gets a signal or no more memory, or the clock of all of its
processes jumps by hours (the wall clock that ``time.time`` reads; monotonic clocks go on). From seed 100 on, the disk of the results
becomes full, read-only after an error, or stands still for a while instead, which needs root. What has ended is started again with the same
command, until it ends well.

The promise, of which every part is checked: the model file, the tensors in the store and the numbers of the report (those that are not
times) equal those of the undisturbed run, byte for byte; a start that fails ends with one line of error and no traceback; no finished task
is carried out again; no process is left ten seconds after a start has ended; and the next start waits for nobody.

Prints a line for each seed. --write keeps the outcomes, also of earlier calls: seeds in the file are not repeated. Ends with exit status 1
if the promise was broken, and keeps the folders of those seeds.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from failing_disk import Disk
from falling import STAGES, Fall, Kind, Part, Run, draw, draw_of_disk, drop, remove_groups

from workers.files import read_lines

SETTINGS = [
    "name=chaos",
    "model.arguments={img_size:16,patch_size:8,in_chans:1,num_classes:10,embed_dim:32,depth:2,num_heads:2}",
    "data.image_size=16",
    "data.calibration_batches=24",
    "data.train_size=256",
    *[f"training.{setting}" for setting in ("epochs=3", "batch_size=32", "warmup_epochs=0.0", "ranks=1")],
    *[f"recovery.{setting}" for setting in ("epochs=3", "batch_size=32", "ranks=2")],
    "cluster.threads=1",
]
PRUNERS = {
    "weights": ["pruner=guided", "pruner.block_size=16", "pruner.target.sparsity=0.75", "pruner.refit.order=sequential"],
    "units": ["pruner=taylor", "pruner.target.removed=0.5"],
}
CLUSTERS = {"local": ["cluster=local"], "ray": ["cluster=ray", "cluster.workers=2", "cluster.cpus_per_worker=0.5"]}
TIMES = {  # keys of the report whose values depend on times, or on how the run was carried out
    *("timeline", "seconds", "stage_seconds", "predicted_stage_seconds", "verdict", "sentences"),
    "sparse_layers",  # the sparse runtime takes the layers that it measures to be faster
    *("environment", "command", "experiment", "warnings"),
}
DISKS = 100  # from this seed on, the disk falls
# A driver that is killed in the milliseconds in which it starts a process leaves one that ends so in Python, before our code runs there.
BEING_STARTED = re.compile(
    r"Traceback \(most recent call last\):\n(?:  .*\n)+?  File .*, in spawn_main\n(?:  .*\n)+"
    r"    .*reduction\.pickle\.load\(from_parent\)\n(?:[ ^]*\n)?EOFError: Ran out of input\n"
)
LEFT_SECONDS = 10.0  # that processes may take to end after their driver


@dataclass
class Outcome:
    """What a seed did. ``broken`` says how the promise was broken; nothing if it was kept."""

    seed: int
    cluster: str
    pruner: str
    falls: list[Fall] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    undisturbed_seconds: float = 0.0
    bytes_compared: int = 0
    messages: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        falls = "; ".join(str(fall) for fall in self.falls) or "no fall, since it ended before"
        kept = f"BROKEN: {'; '.join(self.broken)}" if self.broken else f"{self.bytes_compared} equal bytes"
        lost = f"{self.seconds:.0f} s in {self.starts} starts, {self.seconds - self.undisturbed_seconds:+.0f} s"
        return f"seed {self.seed} ({self.cluster}, {self.pruner}): {falls}: {lost}; {kept}"


def seed_outcome(seed: int, folder: Path, undisturbed: Path, compared: str | None, patience: float) -> Outcome:
    """Carries out one seed in ``folder``. The folders of the undisturbed runs, on the cluster ``compared``, are in ``undisturbed``."""
    drawn = random.Random(seed)
    cluster, pruner = list(CLUSTERS)[seed % 2], "units" if seed % 5 >= 3 else "weights"
    common, reference = [*SETTINGS, *PRUNERS[pruner]], undisturbed / f"undisturbed-{pruner}-{compared or cluster}"
    seconds = carry_out_undisturbed(reference, [*common, *CLUSTERS[compared or cluster]], patience)
    outcome = Outcome(seed, cluster, pruner, undisturbed_seconds=seconds)
    disk = Disk(folder / "runs") if seed >= DISKS else None
    falls = draw(drawn, seed, pruner) if disk is None else draw_of_disk(drawn, seed, pruner)
    records: dict[Path, int] = {}
    while not outcome.broken:
        run = Run([*common, *CLUSTERS[cluster]], folder, STAGES[pruner].split(","))
        outcome.starts += 1
        sent = list(let_fall(run, falls, drawn, disk, patience))
        outcome.falls += sent
        status = run.wait(patience)
        outcome.seconds += run.seconds
        outcome.broken += list(broken_by(run, sent, records))
        records |= {path: path.stat().st_mtime_ns for path in folder.glob("runs/store/**/record.json")}
        if disk is not None:
            disk.mend()
        if status == 0:
            outcome.broken += list(broken_results(folder, reference, outcome))
            break
        outcome.messages.append(next((line for line in run.said.splitlines() if line.startswith("error: ")), run.last_line))
        if not sent and not outcome.broken:
            outcome.broken.append(f"it failed without a fall: {run.last_line}")
    if disk is not None and not outcome.broken:
        disk.remove()
    return outcome


def let_fall(run: Run, falls: list[Fall], drawn: random.Random, disk: Disk | None, patience: float) -> Iterator[Fall]:
    """Lets the run fall, and takes from ``falls`` what happened, until it ends."""
    while falls and run.reach(falls[0], patience):
        fall = drop(run, falls.pop(0), drawn, disk)
        if fall is not None:
            yield fall
        if not run.lives(drawn.uniform(0.0, 2.0)):
            return


def broken_by(run: Run, sent: Sequence[Fall], records: dict[Path, int]) -> Iterator[str]:
    """How a start that has ended broke the promise. ``records`` are those of results that were finished before, and when."""
    if run.status is None:
        yield f"it hung at {run.stage}"
        run.end()
        return
    left = run.left(LEFT_SECONDS)  # and the watch has said what there was
    killed = run.status < 0 and any(fall.part is Part.DRIVER for fall in sent)
    errors = [line for line in run.said.splitlines() if line.startswith("error: ")]
    if "Traceback" in (BEING_STARTED.sub("", run.said) if run.status < 0 else run.said):
        yield "a traceback"
    if run.status != 0 and not killed and len(errors) != 1:
        yield f"exit status {run.status} with {len(errors)} lines of error"
    if "end that process to compute it here" in run.said:
        yield "it waited for a process that had fallen"
    if left:
        yield f"left running: {', '.join(left)}"
        run.end()
    again = [str(path) for path, when in records.items() if not path.exists() or path.stat().st_mtime_ns != when]
    if again:
        yield f"finished work was repeated: {again}"


def broken_results(folder: Path, reference: Path, outcome: Outcome) -> Iterator[str]:
    """How the results of a run differ from those of the undisturbed one."""
    wanted, found = files(reference), files(folder)
    if wanted.keys() != found.keys():
        yield f"other files: {sorted(wanted.keys() ^ found.keys())}"
    for name in sorted(wanted.keys() & found.keys()):
        ours, theirs = found[name].read_bytes(), wanted[name].read_bytes()
        outcome.bytes_compared += len(ours)
        if ours != theirs:
            yield f"other bytes: {name}"
    if numbers(folder) != numbers(reference):
        yield "other numbers in the report"
    computed = Counter(line["fingerprint"] for line in tasks(folder) if line["computed"])
    if repeated := [key for key, times in computed.items() if times > 1]:
        yield f"computed twice: {repeated}"


def directory(folder: Path) -> Path:
    (found,) = folder.glob("runs/chaos-*")
    return found


def files(folder: Path) -> dict[str, Path]:
    """Returns the model file and the tensors in the store, by their names in the folder."""
    return {str(path.relative_to(folder)): path for path in (folder / "runs").rglob("*.safetensors")}


def tasks(folder: Path) -> list[dict]:
    return read_lines(directory(folder) / "tasks.jsonl")


def numbers(folder: Path) -> object:
    """Returns the report without what depends on times. Of a training it has one line for each epoch; lines between them are timed."""

    def timeless(value: object) -> object:
        if isinstance(value, dict):
            kept = {key: entry for key, entry in value.items() if key not in TIMES and not key.endswith(("_seconds", "per_second", "_ms"))}
            return {key: timeless(entry) for key, entry in kept.items()}
        return [timeless(entry) for entry in value] if isinstance(value, list) else value

    report = json.loads((directory(folder) / "report.json").read_text(encoding="utf-8"))
    curves = {name: list({line["epoch"]: line for line in lines}.values()) for name, lines in report["curves"].items()}
    return timeless(report | {"curves": curves})


def carry_out_undisturbed(folder: Path, settings: Sequence[str], patience: float) -> float:
    """Returns the seconds of an undisturbed run in ``folder``, unless it is there already."""
    noted = folder / "seconds"
    if not noted.exists():
        run = Run(settings, folder)
        if run.wait(patience) != 0:
            run.end()
            sys.exit(f"error: the undisturbed run did not end well: {run.last_line}")
        noted.write_text(str(run.seconds), encoding="utf-8")
    return float(noted.read_text(encoding="utf-8"))


def figures(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Returns what the seeds have shown together."""
    falls = [fall for outcome in outcomes for fall in outcome.falls]
    return {
        "seeds": len(outcomes),
        "broken": [outcome.seed for outcome in outcomes if outcome.broken],
        "falls": len(falls),
        "falls_by_stage": dict(Counter(fall.stage for fall in falls)),
        "falls_by_part": dict(Counter(fall.part.value for fall in falls)),
        "falls_by_kind": dict(Counter(fall.kind.value for fall in falls)),
        "survived_in_one_start": sum(outcome.starts == 1 for outcome in outcomes),
        "needed_another_start": sum(outcome.starts > 1 for outcome in outcomes),
        "bytes_compared": sum(outcome.bytes_compared for outcome in outcomes),
        "seconds_lost": sum(outcome.seconds - outcome.undisturbed_seconds for outcome in outcomes),
    }


def plain(outcome: Outcome) -> dict:
    """Returns an outcome as it is written."""
    falls = [asdict(fall) | {"kind": fall.kind.name, "part": fall.part.name} for fall in outcome.falls]
    return asdict(outcome) | {"falls": falls}


def outcome_of(entry: dict) -> Outcome:
    """Returns an outcome as it was before it was written."""
    falls = [Fall(Kind[fall["kind"]], Part[fall["part"]], fall["stage"], fall["seconds"]) for fall in entry["falls"]]
    return Outcome(**(entry | {"falls": falls}))


def seeds_of(text: str) -> list[int]:
    """Returns the seeds of a text such as ``0-4,8``."""
    ends = [part.partition("-") for part in text.split(",")]
    return [seed for first, _, last in ends for seed in range(int(first), int(last or first) + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("0-49"), metavar="FIRST-LAST[,...]")
    parser.add_argument("--only", type=int, metavar="SEED", help="this seed alone, also if it is in the file")
    parser.add_argument("--reference", choices=CLUSTERS, help="where the undisturbed runs are, which seconds lost count from")
    parser.add_argument("--write", type=Path, metavar="FILE.json", help="where the outcomes are kept")
    parser.add_argument("--folder", type=Path, help="where the runs are carried out; by default a new folder")
    parser.add_argument("--patience", type=float, default=3600.0, metavar="SECONDS", help="after which a run counts as hanging")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    known = json.loads(given.write.read_text(encoding="utf-8"))["outcomes"] if given.write and given.write.exists() else []
    outcomes = {entry["seed"]: outcome_of(entry) for entry in known}
    wanted = [given.only] if given.only is not None else [seed for seed in given.seeds if seed not in outcomes]
    for seed in wanted:
        place = folder / f"seed{seed}"
        shutil.rmtree(place, ignore_errors=True)
        outcomes[seed] = outcome = seed_outcome(seed, place, folder, given.reference, given.patience)
        print(outcome if not outcome.broken else f"{outcome}; see {place}", flush=True)
        remove_groups()
        if not outcome.broken:
            shutil.rmtree(place)
        if given.write:
            written = {"figures": figures(list(outcomes.values())), "outcomes": [plain(entry) for entry in outcomes.values()]}
            given.write.write_text(json.dumps(written, indent=1), encoding="utf-8")
    print(json.dumps(figures(list(outcomes.values())), indent=1))
    if not given.folder and not any(outcome.broken for outcome in outcomes.values()):
        shutil.rmtree(folder)
    sys.exit(any(outcomes[seed].broken for seed in wanted))


if __name__ == "__main__":
    main()
