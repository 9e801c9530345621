"""Plant a backdoor: attack, measure, store the truth, register the suspect."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sanitize.attacks import Attack, EncoderAttack, PoisoningAttack, Truth, attack_named
from sanitize.data import ImageSet, Trigger
from sanitize.data.writing import write_parquet
from sanitize.environment import tool
from sanitize.evaluation import Policy
from sanitize.export.package import write_package
from sanitize.intake import Knowledge, take_in
from sanitize.publication import described, described_triggers, record_settings
from sanitize.red_team.request import AttackRequest, check_request
from sanitize.red_team.scene import Scene, set_scene
from sanitize.suspects import Network
from sanitize.tracking import RunRecorder, Store
from sanitize.tracking.digests import sha256_of
from sanitize.tracking.intake import check_kind
from sanitize.tracking.truth import EXPERIMENT, PLANTED_TAG, write_truth
from sanitize.trainers import Trainer, trainer_named
from sanitize.training import Display, Engine, require_one_process
from sanitize.training_inputs import evaluator_for
from sanitize.types import Metrics


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What was planted.

    Args:
        attack: Name of the attack.
        subject: ``encoder``, ``classifier`` or ``data set``.
        uri: The registered suspect, or None where only a file was written.
        file: Where the poisoned data set was written, or None.
        truth_run: The run that holds the truth.
        images: How many images there are in the data.
        poisoned: How many of them carry the trigger, as realised; None where no data was poisoned.
        share: The same as a share.
        triggers: Name, target and digest of each.
        clean: Metrics of the encoder before the attack; empty where there is none.
        suspect: Metrics of the suspect; empty for a data set.
        unmeasured: Metric -> why it is None.
        established: Whether the attack works; None where that was not measured.
    """

    attack: str
    subject: str
    uri: str | None
    file: str | None
    truth_run: str
    images: int
    poisoned: int | None
    share: float | None
    triggers: list[dict[str, Any]]
    clean: Metrics
    suspect: Metrics
    unmeasured: dict[str, str]
    established: bool | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What an attack left: a suspect network or a poisoned data set (or both), with its triggers."""

    network: Network | None
    data: ImageSet | None
    truth: Truth | None
    triggers: tuple[Trigger, ...]


class RedTeam:
    """Plants a backdoor.

    Args:
        attack: A name (`sanitize attacks` lists them), or an instance with its hyperparameters.
        trainer: What trains the encoder that is attacked, or the victim of poisoned data; None to train nothing.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: A Lightning Fabric precision.
        seed: Source of all randomness.
        tracking_uri: MLflow; its own default when left out.
        policy: From which success rate on an attack counts as established.
        display: Shows progress; silent when left out.

    Example:
        >>> RedTeam("badencoder", seed=1).attack.name
        'badencoder'
    """

    def __init__(
        self,
        attack: str | Attack,
        *,
        trainer: str | Trainer | None = None,
        device: str = "auto",
        precision: str = "32-true",
        seed: int = 0,
        tracking_uri: str | None = None,
        policy: Policy | None = None,
        display: Display | None = None,
    ) -> None:
        require_one_process("an attack")
        self.attack = attack_named(attack)() if isinstance(attack, str) else attack
        self.trainer = trainer_named(trainer)() if isinstance(trainer, str) else trainer
        self.device = device
        self.precision = precision
        self.seed = seed
        self.tracking_uri = tracking_uri
        self.policy = policy or Policy()
        self.display = display or Display(quiet=True)

    def run(self, request: AttackRequest) -> Planted:
        """Check, plant, measure, store the truth, register.

        Raises:
            SanitizeError: Something is missing, unfit or out of reach. Nothing is registered then.
        """
        check_request(self.attack, self.trainer, request)
        store = Store(self.tracking_uri)
        with tempfile.TemporaryDirectory(prefix="sanitize-attack-") as temporary:
            folder = Path(temporary)
            scene = set_scene(
                request, self.attack, self.trainer, seed=self.seed, store=store, folder=folder / "downloads"
            )
            if request.register:
                check_kind(store, request.register, "data" if scene.network is None else "model")
            engine = Engine(device=self.device, precision=self.precision, seed=self.seed, display=self.display)
            with RunRecorder(
                store, experiment=EXPERIMENT, name=f"{self.attack.name} {request.register or request.output_data}"
            ) as recorder:
                engine.recorder = recorder
                record_settings(
                    recorder,
                    self.attack,
                    seed=self.seed,
                    inputs={"clean": scene.data, "probe": scene.probe_data, "test": scene.test_data},
                )
                return self._plant(request, scene, engine, recorder, folder)

    def _plant(
        self, request: AttackRequest, scene: Scene, engine: Engine, recorder: RunRecorder, folder: Path
    ) -> Planted:
        attack, clean = self.attack, None
        if isinstance(attack, EncoderAttack):
            clean = self._clean_encoder(scene, engine)
            implanted = attack.implant(clean, scene.data, engine, triggers=scene.triggers)
            outcome = _Outcome(network=implanted.network, data=None, truth=None, triggers=implanted.triggers)
        else:
            outcome = self._poison(scene, engine)
        specs = [trigger.save(folder / "triggers" / str(number)) for number, trigger in enumerate(outcome.triggers)]
        shown = tuple(Trigger.from_yaml(spec) for spec in specs)  # as evaluations will read them
        metrics, unmeasured = self._measure(scene, shown, engine, clean=clean, suspect=outcome.network)
        suspect = self._write_suspect(request, outcome, folder)
        facts = self._facts(request, scene, outcome, shown, metrics, suspect)
        if clean is not None and scene.parent is None:
            package = write_package(clean.cpu(), folder / "clean")
            recorder.file(package, "clean")
            facts["clean_parent"] = {"uri": f"runs:/{recorder.run_id}/clean", "sha256": sha256_of(package)}
        write_truth(
            recorder,
            facts,
            triggers=[spec.parent for spec in specs],
            poisoned=outcome.truth.poisoned if outcome.truth else None,
            labels=outcome.truth.labels if outcome.truth else None,
        )
        recorder.summary(
            {f"{side}/{name}": value for side, values in metrics.items() for name, value in values.items()}
        )
        uri = None
        if request.register:
            known = self._knowledge(scene, outcome.network, specs)
            uri = take_in(suspect, request.register, known, tracking_uri=self.tracking_uri).uri
        recorder.tags({PLANTED_TAG: uri or f"sha256:{facts['suspect']['sha256']}"})
        success = metrics["suspect"].get("attack_success_rate")
        return Planted(
            attack=attack.name,
            subject=outcome.network.spec.kind if outcome.network else "data set",
            uri=uri,
            file=str(request.output_data) if request.output_data else None,
            truth_run=recorder.run_id,
            images=len(scene.data),
            poisoned=outcome.truth.count if outcome.truth else None,
            share=outcome.truth.share if outcome.truth else None,
            triggers=facts["triggers"],
            clean=metrics["clean"],
            suspect=metrics["suspect"],
            unmeasured=unmeasured,
            established=None if success is None else success >= self.policy.established_attack_success_rate,
        )

    def _clean_encoder(self, scene: Scene, engine: Engine) -> Network:
        assert scene.network is not None
        if self.trainer is None:
            return scene.network
        self.display.say(f"Training a clean encoder ({self.trainer.name}).")
        data = scene.data if self.trainer.needs_labels else scene.data.without_labels()
        return self.trainer.train(scene.network, data, engine).network

    def _poison(self, scene: Scene, engine: Engine) -> _Outcome:
        attack = self.attack
        assert isinstance(attack, PoisoningAttack)
        poisoned = attack.poison(scene.data, engine, triggers=scene.triggers)
        data = poisoned.data.without_labels() if attack.label_mode is None else poisoned.data
        network = None
        if self.trainer is not None and scene.network is not None:
            self.display.say(f"Training a victim on the poisoned data ({self.trainer.name}).")
            seen = poisoned.data if self.trainer.needs_labels else data.without_labels()
            network = self.trainer.train(scene.network, seen, engine).network
        return _Outcome(network=network, data=data, truth=poisoned.truth, triggers=poisoned.triggers)

    def _measure(
        self,
        scene: Scene,
        triggers: tuple[Trigger, ...],
        engine: Engine,
        *,
        clean: Network | None,
        suspect: Network | None,
    ) -> tuple[dict[str, Metrics], dict[str, str]]:
        metrics: dict[str, Metrics] = {"clean": {}, "suspect": {}}
        if suspect is None:
            return metrics, {}
        evaluator = evaluator_for(
            suspect.spec.kind, probe_data=scene.probe_data, test_data=scene.test_data, triggers=triggers
        )
        before = evaluator.measure(clean, engine) if clean is not None else None
        if before is not None:
            metrics["clean"] = before.metrics
        measured = evaluator.measure(suspect, engine, before=before)
        metrics["suspect"] = measured.metrics
        return metrics, measured.unmeasured

    @staticmethod
    def _write_suspect(request: AttackRequest, outcome: _Outcome, folder: Path) -> Path:
        """What arrives in the registry: a plain checkpoint, or a Parquet file; with names that tell nothing."""
        if outcome.data is not None and request.output_data is not None:
            write_parquet(outcome.data, request.output_data)
        if outcome.network is not None:
            network = outcome.network.cpu()
            file = folder / f"{network.spec.kind}.pth"
            torch.save({"state_dict": network.backbone.state_dict()}, file)
            return file
        assert outcome.data is not None
        file = folder / "images.parquet"
        write_parquet(outcome.data, file)
        return file

    @staticmethod
    def _knowledge(scene: Scene, network: Network | None, specs: list[Path]) -> Knowledge:
        """What the defender of the drill is told."""
        if network is None:
            return Knowledge()
        return Knowledge(
            kind=network.spec.kind,
            data=scene.data.uri,
            probe_data=scene.probe_data.uri if network.spec.kind == "encoder" else None,
            test_data=scene.test_data.uri if scene.test_data else None,
            triggers=specs,
            arch=network.spec.architecture,
            normalization=network.spec.normalization.name,
            image_size=network.spec.image_size,
        )

    def _facts(
        self,
        request: AttackRequest,
        scene: Scene,
        outcome: _Outcome,
        triggers: Sequence[Trigger],
        metrics: dict[str, Metrics],
        suspect: Path,
    ) -> dict[str, Any]:
        attack, truth, network = self.attack, outcome.truth, outcome.network
        return {
            "tool": tool(),
            "attack": {
                "name": attack.name,
                "paper": attack.paper.reference,
                "parameters": attack.model_dump(mode="json"),
                "label_mode": attack.label_mode if isinstance(attack, PoisoningAttack) else None,
            },
            "suspect": {
                "name": request.register,
                "kind": network.spec.kind if network else "data set",
                "sha256": sha256_of(suspect),
            },
            "network": network.spec.to_dict() if network else None,
            "training": {"name": self.trainer.name, "parameters": self.trainer.model_dump(mode="json")}
            if self.trainer
            else None,
            "clean_parent": scene.parent,
            "data": described(scene.data),
            "poisoned": {"count": truth.count, "share": truth.share, "images": len(scene.data)} if truth else None,
            "triggers": described_triggers(triggers),
            "metrics": metrics,
            "seed": self.seed,
        }
