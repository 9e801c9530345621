"""What an attack needs, loaded and checked before any work."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from sanitize.attacks import Attack, EncoderAttack, PoisoningAttack
from sanitize.data import ImageSet, Trigger, load_images
from sanitize.inputs import Request, gather
from sanitize.red_team.request import AttackRequest
from sanitize.rehearsal import rehearse
from sanitize.suspects import Network
from sanitize.tracking import Store
from sanitize.trainers import Trainer
from sanitize.training_inputs import evaluator_for, fitting_triggers, fresh_network


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Data, network and triggers of an attack.

    Args:
        data: Clean labelled images.
        probe_data: Labelled images for the linear probe.
        test_data: Labelled images for the evaluation, or None.
        network: The clean encoder that is attacked, an untrained network, or None where nothing is trained.
        parent: URI and digest of the clean encoder, where it comes from the registry.
        triggers: The user's own; empty for those of the attack.
    """

    data: ImageSet
    probe_data: ImageSet
    test_data: ImageSet | None
    network: Network | None
    parent: dict[str, str] | None
    triggers: tuple[Trigger, ...]


def set_scene(
    request: AttackRequest, attack: Attack, trainer: Trainer | None, *, seed: int, store: Store, folder: Path
) -> Scene:
    """Load everything and check it; nothing is written to the store.

    Args:
        request: Checked by `check_request`.
        attack: What is going to be done.
        trainer: What trains, or None.
        seed: Source of all randomness.
        store: MLflow.
        folder: For downloads.

    Raises:
        SanitizeError: Something is missing, unsafe, unfit or out of reach.
    """
    if request.model is not None:
        scene = _with_model(request, request.model, store, folder)
    else:
        scene = _with_data(request, trainer, seed, store, folder)
    _rehearse(attack, trainer, scene, seed)
    return scene


def _with_model(request: AttackRequest, model: str, store: Store, folder: Path) -> Scene:
    """The clean encoder is read by the way of every suspect."""
    wanted = Request(
        model=model,
        kind="encoder",
        data=request.data,
        probe_data=request.probe_data,
        test_data=request.test_data,
        arch=request.arch,
        normalization=request.normalization,
        image_size=request.image_size,
        allow_stubbed=request.allow_stubbed,
    )
    inputs = gather(wanted, store, folder / "quarantine")
    assert inputs.data is not None  # it was named
    return Scene(
        data=inputs.data,
        probe_data=inputs.probe_data or inputs.data,
        test_data=inputs.test_data,
        network=inputs.suspect.network,
        parent={"uri": inputs.reference.pinned_uri, "sha256": inputs.tensors.sha256},
        triggers=fitting_triggers(request.triggers, inputs.data.image_size),
    )


def _with_data(request: AttackRequest, trainer: Trainer | None, seed: int, store: Store, folder: Path) -> Scene:
    def load(source: str, name: str) -> ImageSet:
        return load_images(
            source, image_size=request.image_size, resolve=lambda uri: store.artifact(uri, folder / name)
        )

    data = load(request.data, "data")
    network = None
    if trainer is not None:
        assert request.arch and request.normalization and request.image_size  # check_request() has seen to it
        network = fresh_network(
            trainer, data, request.arch, image_size=request.image_size, normalization=request.normalization, seed=seed
        )
    return Scene(
        data=data,
        probe_data=load(request.probe_data, "probe") if request.probe_data else data,
        test_data=load(request.test_data, "test") if request.test_data else None,
        network=network,
        parent=None,
        triggers=fitting_triggers(request.triggers, data.image_size),
    )


def _rehearse(attack: Attack, trainer: Trainer | None, scene: Scene, seed: int) -> None:
    """Attack and training as far as they go without training anything."""
    network, triggers = scene.network, scene.triggers
    if isinstance(attack, PoisoningAttack):
        poisoned = rehearse(lambda engine: attack.poison(scene.data, engine, triggers=scene.triggers), seed=seed)
        triggers = poisoned.triggers if poisoned else triggers
    elif isinstance(attack, EncoderAttack) and network is not None:
        rehearse(lambda engine: attack.implant(network, scene.data, engine, triggers=scene.triggers), seed=seed)
    if network is None:
        return
    if trainer is not None:
        rehearse(lambda engine: trainer.train(copy.deepcopy(network), scene.data, engine), seed=seed)
    evaluator = evaluator_for(
        network.spec.kind, probe_data=scene.probe_data, test_data=scene.test_data, triggers=triggers
    )
    evaluator.check(network.spec)
