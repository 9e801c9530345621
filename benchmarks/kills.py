"""kill -9 at random moments of small runs, then ``--resume``: ``python -m benchmarks.kills``.

Each method first runs whole, once. A kill comes at a moment drawn evenly from the time that the whole run took, from
its first sign in the work directory to its end, so that it may hit reading, training, measuring, export or release.
After the kill the registry must hold no half-made version; after the resumption everything must be as if nothing had
happened. What was survived is kept in --work, and not tried again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient

from sanitize.defenses import DEFENSES, Purifier
from sanitize.intake import Knowledge, take_in
from sanitize.tracking import Store, verify
from tests.trained import unpack

PAGE = Path("docs/results/kills.md")
MOST_OF = "bmaiu"
CENTRAL_SHARE = 0.3
"""What the most important method gets of all kills."""
SETTINGS: dict[str, dict[str, Any]] = {
    "bmaiu": {"epochs": 4},
    "clp": {"threshold": 1.0},
    "d-br": {"rounds": 2},
    "distill": {"epochs": 6},
    "fine-tune": {"epochs": 8},
    "i-bau": {"rounds": 2, "inner_steps": 10, "hypergradient_steps": 2},
    "nad": {"teacher_epochs": 3, "epochs": 5},
    "neural-cleanse": {"steps": 40, "repeats": 1, "unlearn_epochs": 3},
    "ssl-cleanse": {"steps": 60, "batch_size": 16, "unlearn_epochs": 4},
    "uau": {"rounds": 6, "evidence_steps": 1},
}
"""What makes a run short. Nobody looks at how well it cleans."""
NOT_OURS = {".ses"}
"""What ONNX Runtime leaves in the folder for temporary files after every run, killed or not."""


class Broken(Exception):
    """Something was not as if nothing had happened; the message says what."""


@dataclass(frozen=True)
class Kill:
    """One kill that was survived, or not.

    Args:
        method: Of the run.
        number: Counts the kills of a method from 0.
        moment: Seconds from the first sign of the run.
        whole: Seconds that the whole run took.
        stage: Where it hit: the newest files of the work directory tell.
        fault: What was wrong afterwards; empty when nothing was.
    """

    method: str
    number: int
    moment: float
    whole: float
    stage: str
    fault: str


class Runs:
    """Runs of one method on a suspect in a store of its own."""

    def __init__(self, method: str, folder: Path) -> None:
        self.method, self.folder = method, folder
        self.kind = "encoder" if "encoder" in DEFENSES[method].kinds else "classifier"
        shutil.rmtree(folder, ignore_errors=True)
        self.temporary = folder.absolute() / "temporary"
        self.temporary.mkdir(parents=True)
        self.uri = f"sqlite:///{folder.absolute()}/mlflow.db"
        trained = unpack(f"{self.kind}s", folder / "trained")
        known = Knowledge(
            kind="encoder" if self.kind == "encoder" else "classifier",
            data="digits#0:420",
            probe_data="digits#0:600" if self.kind == "encoder" else None,
            test_data="digits#1400:",
            triggers=[trained / "trigger" / "trigger.yaml"] if self.kind == "encoder" else [],
            arch="small-cnn",
            normalization="half",
            image_size=32,
        )
        take_in(trained / "suspect.pth", "suspect", known, tracking_uri=self.uri)
        self.client = MlflowClient(self.uri)

    def start(self, workdir: Path, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "sanitize", self.kind, "models:/suspect/1", "--method", self.method]
        command += [part for name, value in SETTINGS[self.method].items() for part in ("--set", f"{name}={value}")]
        command += ["--tracking-uri", self.uri, "--workdir", str(workdir), "--device", "cpu", "--quiet"]
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        return subprocess.Popen(
            [*command, "--format", "json", *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def versions(self) -> set[str]:
        return {str(version.version) for version in self.client.search_model_versions("name='suspect'")}

    def aliases(self) -> dict[str, str]:
        return {name: str(version) for name, version in self.client.get_registered_model("suspect").aliases.items()}

    def check_made(self, made: Iterable[str], aliases: Mapping[str, str]) -> None:
        """Versions that a run has made are complete, and the alias points where it did, or to one that passed."""
        for version in made:
            if faults := verify(Store(self.uri), f"models:/suspect/{version}"):
                raise Broken(f"version {version} is half-made: {faults[0].message}")
        moved = self.aliases()
        for version in {version for name, version in moved.items() if aliases.get(name) != version}:
            tags = self.client.get_model_version("suspect", version).tags
            if version not in made or tags["sanitize.verdict"] != "pass":
                raise Broken(f"an alias points to version {version}, which did not pass: {moved}")

    def check_ended(self, workdir: Path) -> None:
        """No run goes on, and nothing but results lies in the work directory."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        running = self.client.search_runs(experiments, "attributes.status = 'RUNNING'")
        if running:
            raise Broken(f"{len(running)} runs stayed RUNNING: {running[0].info.run_name}")
        left = [path for path in workdir.rglob("*") if path.is_dir() or "partial" in path.name]
        left += [path for path in self.temporary.iterdir() if path.name not in NOT_OURS]
        if left:
            raise Broken(f"left over: {', '.join(path.name for path in left)}")


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    stdout, stderr = process.communicate()
    if process.returncode not in (0, 1, 3):  # a verdict
        raise Broken(f"exit code {process.returncode}: {stderr.strip()[-300:]}")
    report: dict[str, Any] = json.loads(stdout)
    return report


def outcome(report: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """What must be the same bit for bit."""
    weights = hashlib.sha256((workdir / "model.safetensors").read_bytes()).hexdigest()
    return {"weights": weights, **{name: report[name] for name in ("verdict", "reasons", "metrics")}}


def wait_for(path: Path, process: subprocess.Popen[str]) -> float:
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)
    return time.monotonic()


def stage_of(workdir: Path) -> str:
    """What a killed run was doing."""
    staging, checkpoints = (list((workdir / name).rglob("*")) for name in ("staging", "checkpoints"))
    if (workdir / "report.json").exists():
        return "after the release"
    if staging:
        return "export or release"
    if checkpoints:
        return f"after an epoch of {max(checkpoints, key=lambda path: path.stat().st_mtime).stem}"
    return "before the first checkpoint" if (workdir / "job.json").exists() else "before the job began"


def whole_run(runs: Runs) -> tuple[dict[str, Any], float]:
    """What an undisturbed run gives, and how long it takes."""
    workdir = runs.folder / "whole"
    process = runs.start(workdir)
    began = wait_for(workdir, process)
    expected = outcome(finished(process), workdir)
    return expected, time.monotonic() - began


def kill_once(runs: Runs, number: int, expected: dict[str, Any], whole: float, draw: random.Random) -> Kill:
    """Kill one run, look at what is left of it, resume it, and look again."""
    versions, aliases = runs.versions(), runs.aliases()
    while True:  # a run that ended before its moment was not killed, and counts for nothing
        shutil.rmtree(runs.temporary)
        runs.temporary.mkdir()
        workdir = runs.folder / f"{number}-{draw.randrange(10**9)}"
        moment = draw.uniform(0, whole)
        process = runs.start(workdir)
        began = wait_for(workdir, process)
        time.sleep(max(0.0, began + moment - time.monotonic()))
        if process.poll() is None:
            break
        process.communicate()
        versions, aliases = runs.versions(), runs.aliases()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    stage = stage_of(workdir)
    try:
        runs.check_made(runs.versions() - versions, aliases)
        report = finished(runs.start(workdir, *(["--resume"] if (workdir / "job.json").exists() else [])))
        made = runs.versions() - versions
        if len(made) != 1:
            raise Broken(f"{len(made)} versions were made")
        runs.check_made(made, aliases)
        runs.check_ended(workdir)
        differing = [name for name, value in outcome(report, workdir).items() if value != expected[name]]
        if differing:
            raise Broken(f"not as in the whole run: {', '.join(differing)}")
    except Broken as error:
        return Kill(runs.method, number, moment, whole, stage, str(error))
    shutil.rmtree(workdir)
    return Kill(runs.method, number, moment, whole, stage, "")


def shares(total: int, methods: list[str]) -> dict[str, int]:
    """How many kills each method gets: the central one its share, the others what is left, evenly."""
    others = [method for method in methods if method != MOST_OF]
    if MOST_OF not in methods:
        return {method: total // len(others) + (number < total % len(others)) for number, method in enumerate(others)}
    central = round(CENTRAL_SHARE * total) if others else total
    return {MOST_OF: central} | (shares(total - central, others) if others else {})


def write_page(kills: list[Kill], seed: int) -> None:
    """The table, and what was wrong."""
    survived = sum(not kill.fault for kill in kills)
    lines = [
        "# Kills and resumptions",
        "",
        f"Of {len(kills)} runs that `python -m benchmarks.kills --seed {seed}` ended by `kill -9`, {survived} came "
        "with `--resume` to the weights, measures and verdict of an undisturbed run, bit for bit. Checked each time: "
        "no half-made version and no alias on one, before and after the resumption; one new version; no run left "
        "`RUNNING`; no temporary file, in the work directory or outside of it.",
        "",
        f"Measured {date.today()} on {os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}; short "
        "runs with `small-cnn` on digits. Moments are seconds from the first sign of a run in its work directory.",
        "",
        "| method | kills | moments | of about | hit | survived |",
        "|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(kill.method for kill in kills):
        mine = sorted((kill for kill in kills if kill.method == method), key=lambda kill: kill.moment)
        stages = dict.fromkeys(kill.stage for kill in mine)
        lines.append(
            f"| {method} | {len(mine)} | {', '.join(f'{kill.moment:.1f}' for kill in mine)} | {mine[0].whole:.0f} s "
            f"| {'; '.join(stages)} | {sum(not kill.fault for kill in mine)} |"
        )
    lines += [
        f"\n{kill.method}, kill {kill.number} at {kill.moment:.2f} s: {kill.fault}" for kill in kills if kill.fault
    ]
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    """The command."""
    purifiers = [name for name, defense in DEFENSES.items() if issubclass(defense, Purifier)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="in all")
    parser.add_argument("--method", choices=purifiers, action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, default=Path("kills-work"))
    given = parser.parse_args()
    record = given.work / f"kills-{given.seed}.json"
    kills = [Kill(**one) for one in json.loads(record.read_text())] if record.exists() else []
    for method, count in shares(given.kills, given.method or purifiers).items():
        done = {kill.number for kill in kills if kill.method == method}
        missing = [number for number in range(count) if number not in done]
        if not missing:
            continue
        runs = Runs(method, given.work / method)
        expected, whole = whole_run(runs)
        for number in missing:
            draw = random.Random(f"{given.seed} {method} {number}")
            kill = kill_once(runs, number, expected, whole, draw)
            print(f"{method}: killed at {kill.moment:.1f} s, {kill.stage}: {kill.fault or 'survived'}", flush=True)
            kills.append(kill)
            record.write_text(json.dumps([asdict(one) for one in kills], indent=1))
            write_page(kills, given.seed)
    raise SystemExit(1 if any(kill.fault for kill in kills) else 0)


if __name__ == "__main__":
    main()
