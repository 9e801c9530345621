"""Neural Cleanse: find the smallest trigger of every class; unlearn those that are abnormally small."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from sanitize.data import DeviceImages, ImageSet
from sanitize.data.labels import training_labels
from sanitize.defenses.base import Need, Paper, Purified, Purifier
from sanitize.detection.inversion import Inverted, invert
from sanitize.detection.model import Evidence, ModelDetector
from sanitize.functional.inversion import Controller
from sanitize.functional.outliers import MINIMUM, small_deviations
from sanitize.suspects.networks import Network
from sanitize.training import Engine, History
from sanitize.types import Finding, ModelKind, Severity


class NeuralCleanse(Purifier, ModelDetector):
    """Trigger inversion, anomaly index and unlearning, for classifiers, with clean labelled images.

    For each class, a mask m and a pattern p are sought that send all images of other classes to it while the mask is
    small: ``min CE(g((1 - m) x + m p), t) + c |m|`` (Wang et al. 2019, eq. 3). A class whose mask is smaller than the
    median by more than `threshold` median absolute deviations is suspected. For each suspected class, the network is
    then trained on clean images, some of which carry the trigger that was found with their true label (section VI-B).
    Where no class is suspected, the network comes back as it was.

    Differs from the paper:
        - The inversion is repeated from several starting points; the index is given with its range, and a class is
          suspected where it stands out in at least half of the repeats.
        - The weight of the mask follows the success on each batch, not on each pass over the images.
        - A class for which no trigger reached the success rate has no size: it is left out, not counted as 0.

    Example:
        >>> NeuralCleanse(steps=300, repeats=1).repeats
        1
    """

    name: ClassVar[str] = "neural-cleanse"
    summary: ClassVar[str] = "invert a trigger for each class, unlearn the abnormally small; for patch triggers"
    paper: ClassVar[Paper] = Paper(
        "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks",
        "Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao; IEEE S&P 2019",
        "https://doi.org/10.1109/SP.2019.00031",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"classifier"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL, Need.IMAGES, Need.LABELS, Need.CLEAN_IMAGES})
    minimum_images: ClassVar[int] = 16

    steps: int = Field(
        1000, ge=1, description="of Adam, all classes at once", json_schema_extra={"paper": "1000 times 31 batches"}
    )
    batch_size: int = Field(32, ge=2, description="images a step; as many for each class go through the network")
    learning_rate: float = Field(0.1, gt=0, description="of Adam, for masks and patterns")
    success: float = Field(0.99, gt=0, le=1, description="share of a batch that a working trigger sends to its class")
    penalty: float = Field(1e-3, gt=0, description="first weight of the mask's sum of values")
    patience: int = Field(5, ge=1, description="steps of success or failure before that weight changes")
    repeats: int = Field(3, ge=1, description="starting points of the inversion", json_schema_extra={"paper": 1})
    threshold: float = Field(2.0, gt=0, description="anomaly index above which a class is suspected")
    unlearn_epochs: int = Field(10, ge=1, description="passes over the images", json_schema_extra={"paper": 1})
    unlearn_rate: float = Field(
        0.003,
        gt=0,
        description="learning rate of SGD (momentum 0.9) in unlearning",
        json_schema_extra={"paper": "not stated"},
    )
    stamped_share: float = Field(
        0.2, gt=0, le=1, description="share of images that carry a found trigger in unlearning"
    )

    def examine(self, network: Network, data: ImageSet, engine: Engine) -> Evidence:
        """Invert triggers and compare their sizes; no image is trained on.

        Returns:
            ``anomaly_index`` (median over repeats) with ``_low`` and ``_high``, ``smallest_trigger`` (share of image),
            ``classes_without_trigger``; the suspected classes.
        """
        self.require(network, data)
        return self._evidence(self._invert(network, data, engine), network.spec.output_size)

    def purify(self, network: Network, data: ImageSet, engine: Engine) -> Purified:
        """Examine, then unlearn what stands out; see the class.

        Raises:
            DataError: Labels are missing, are all the same, or name classes that the classifier does not have.
        """
        found = self._invert(network, data, engine)
        evidence = self._evidence(found, network.spec.output_size)
        cleaned = copy.deepcopy(network)
        history = {"invert": found.history}
        chosen = self._smallest_of(found, evidence.suspected, network.spec.output_size)
        images = DeviceImages(data, engine.device)
        before = self._success(network, images, found, chosen, engine)
        if chosen:
            history["unlearn"] = self._unlearn(cleaned, images, found, chosen, engine)
        return Purified(
            cleaned,
            before=evidence.metrics | {"inverted_trigger_success": before},
            after={"inverted_trigger_success": self._success(cleaned, images, found, chosen, engine)},
            history=history,
            pictures=evidence.pictures,
            findings=evidence.findings,
        )

    def _invert(self, network: Network, data: ImageSet, engine: Engine) -> Inverted:
        classes = network.spec.output_size
        labels = training_labels(data, self.name, classes=classes).to(engine.device)
        targets = torch.arange(classes, device=engine.device).repeat(self.repeats)

        def objective(logits: Tensor, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            others = (labels[indices] != targets[:, None]).float()  # (T, B)
            counts = others.sum(dim=1).clamp(min=1)
            wanted = targets[:, None].expand_as(others)
            losses = cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(others)
            hits = (logits.argmax(dim=2) == targets[:, None]) * others
            return (losses * others).sum(dim=1) / counts, hits.sum(dim=1) / counts

        weight = self.penalty * network.spec.image_size**2  # of the mean of the mask, not its sum
        return invert(
            "invert",
            network,
            DeviceImages(data, engine.device),
            objective,
            targets=len(targets),
            controller=Controller(start=0.0, first=weight, up=2.0, down=2.0**1.5, patience=self.patience),
            threshold=self.success,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            engine=engine,
        )

    def _evidence(self, found: Inverted, classes: int) -> Evidence:
        sizes = found.sizes.view(self.repeats, classes)
        missing = int(sizes.isnan().all(dim=0).sum())
        deviations = [each for each in map(small_deviations, sizes) if each is not None]
        metrics: dict[str, float | None] = {
            "smallest_trigger": None if sizes.isnan().all() else float(sizes[~sizes.isnan()].min()),
            "classes_without_trigger": float(missing),
        }
        if not deviations:
            reason = (
                f"an anomaly index needs triggers of {MINIMUM} classes or more, of different sizes; the network has "
                f"{classes} classes, and for {missing} of them no trigger was found"
            )
            names = ("anomaly_index", "anomaly_index_low", "anomaly_index_high")
            return Evidence(
                metrics | dict.fromkeys(names), dict.fromkeys(names, reason), findings=[self._finding((), reason)]
            )
        indices = torch.stack([each.nan_to_num(nan=-torch.inf).max() for each in deviations])
        outlying = torch.stack([each > self.threshold for each in deviations]).float().mean(dim=0) >= 0.5
        suspected = tuple(torch.nonzero(outlying).flatten().tolist())
        metrics |= {
            "anomaly_index": float(indices.quantile(0.5)),
            "anomaly_index_low": float(indices.min()),
            "anomaly_index_high": float(indices.max()),
        }
        chosen = self._smallest_of(found, suspected, classes)
        return Evidence(
            metrics,
            suspected=suspected,
            pictures={f"inverted-trigger-{number % classes}": found.picture(number) for number in chosen},
            findings=[self._finding(suspected, f"anomaly index {metrics['anomaly_index']:.2f}")],
        )

    def _finding(self, suspected: tuple[int, ...], detail: str) -> Finding:
        message = (
            f"an abnormally small trigger exists for class {', '.join(map(str, suspected))}"
            if suspected
            else ("no class stands out by the size of its smallest trigger, and nothing was unlearned")
        )
        return Finding(
            rule="neural-cleanse-small-trigger" if suspected else "neural-cleanse-nothing-found",
            severity=Severity.WARNING if suspected else Severity.NOTE,
            message=f"{message} ({detail}).",
            evidence={"classes": list(suspected), "threshold": self.threshold},
        )

    def _smallest_of(self, found: Inverted, suspected: tuple[int, ...], classes: int) -> list[int]:
        """For each suspected class the number of its smallest trigger among the repeats."""
        sizes = found.sizes.view(self.repeats, classes).nan_to_num(nan=torch.inf)
        return [int(sizes[:, target].argmin()) * classes + target for target in suspected]

    def _success(
        self, network: Network, images: DeviceImages, found: Inverted, chosen: list[int], engine: Engine
    ) -> float | None:
        """Mean over the chosen triggers of the share of images of other classes that reach the class."""
        if not chosen:
            return None
        assert images.labels is not None  # checked by training_labels
        labels, rates = images.labels.cpu(), []
        for number in chosen:
            target = number % network.spec.output_size
            predicted = found.outputs(network, images, number, engine).argmax(dim=1)
            rates.append(float((predicted[labels != target] == target).float().mean()))
        return sum(rates) / len(rates)

    def _unlearn(
        self, cleaned: Network, images: DeviceImages, found: Inverted, chosen: list[int], engine: Engine
    ) -> History:
        """Cross-entropy on true labels; a share of each batch carries one of the chosen triggers."""
        assert images.labels is not None  # checked by training_labels
        labels, masks, patterns = images.labels, found.masks[chosen], found.patterns[chosen]

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            pixels = images.pixels(indices)
            stamped = max(1, round(self.stamped_share * len(indices)))
            which = torch.randint(len(chosen), (stamped,), generator=generator).to(engine.device)
            shown = (1 - masks[which]) * pixels[:stamped] + masks[which] * patterns[which]
            return {
                "loss": cross_entropy(module(torch.cat([shown, pixels[stamped:]])), labels[indices.to(engine.device)])
            }

        return engine.fit(
            "unlearn",
            cleaned,
            loss,
            images=len(images),
            batch_size=self.batch_size,
            epochs=self.unlearn_epochs,
            optimizer=lambda parameters: SGD(parameters, lr=self.unlearn_rate, momentum=0.9),
            train_mode=False,
        )
