"""SSL-Cleanse: find the smallest trigger towards every cluster of features; unlearn the abnormally small."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Adam

from sanitize.data import DeviceImages, ImageSet
from sanitize.defenses.base import Need, Paper, Purified, Purifier
from sanitize.detection.inversion import Inverted, invert
from sanitize.detection.model import Evidence, ModelDetector
from sanitize.errors import DataError
from sanitize.functional.clusters import cluster
from sanitize.functional.inversion import Controller
from sanitize.functional.outliers import MINIMUM, small_deviations
from sanitize.functional.similarity import mean_similarity
from sanitize.suspects.networks import Network
from sanitize.training import Engine, History
from sanitize.types import Finding, ModelKind, Severity


class SSLCleanse(Purifier, ModelDetector):
    """Cluster-wise trigger inversion, anomaly index and unlearning, for encoders, without labels.

    The suspect's features are clustered. For each cluster, a mask and a pattern are sought that pull the features of
    images of other clusters onto features of this one while the mask is small (Zheng et al. 2024, section 3.2). A
    cluster whose mask is smaller than the median by more than `threshold` median absolute deviations is suspected.
    Then the encoder learns that an image with such a trigger looks like its clean self does in the suspect (section
    3.3). Where no cluster is suspected, the encoder comes back as it was.

    Differs from the paper:
        - The number of clusters is given, not sought, and clusters of few images are left out.
        - The size of a trigger is the mean of its mask; the authors' mean of mask times pattern makes black ones free.
        - The median absolute deviation is made consistent once; the authors' code does so twice.
        - In unlearning, clean images keep the suspect's features; the paper trains BYOL on two views, for which a
          registered encoder has no projector.

    Example:
        >>> SSLCleanse(clusters=12).clusters
        12
    """

    name: ClassVar[str] = "ssl-cleanse"
    summary: ClassVar[str] = "invert a trigger for each cluster, unlearn the abnormally small; for patch triggers"
    paper: ClassVar[Paper] = Paper(
        "SSL-Cleanse: Trojan Detection and Mitigation in Self-Supervised Learning",
        "Zheng, Xue, Wang, Chen, Lou, Jiang, Wang; ECCV 2024",
        "https://arxiv.org/abs/2303.09079",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"encoder"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL, Need.IMAGES, Need.CLEAN_IMAGES})
    minimum_images: ClassVar[int] = 64

    clusters: int = Field(10, ge=2, description="K of k-means", json_schema_extra={"paper": "by a knee search"})
    steps: int = Field(
        1000, ge=1, description="of Adam, all clusters at once", json_schema_extra={"paper": "1000 passes"}
    )
    batch_size: int = Field(32, ge=2, description="images a step; as many for each cluster go through the network")
    learning_rate: float = Field(0.1, gt=0, description="of Adam, for masks and patterns")
    success: float = Field(
        0.99, gt=0, le=1, description="share of a batch whose nearest clean feature lies in the cluster"
    )
    penalty: float = Field(0.1, gt=0, description="first weight of the mask's mean")
    patience: int = Field(5, ge=1, description="steps of success or failure before that weight changes")
    threshold: float = Field(2.0, gt=0, description="anomaly index above which a cluster is suspected")
    unlearn_epochs: int = Field(
        20, ge=1, description="passes over the images in unlearning", json_schema_extra={"paper": 500}
    )
    unlearn_rate: float = Field(
        1e-3, gt=0, description="learning rate of Adam in unlearning", json_schema_extra={"paper": 3e-3}
    )
    unlearn_weight: float = Field(1.0, gt=0, description="alpha4: an image with a trigger looks like its clean self")

    def examine(self, network: Network, data: ImageSet, engine: Engine) -> Evidence:
        """Invert triggers and compare their sizes; the encoder is not trained.

        Returns:
            ``anomaly_index``, ``smallest_trigger`` (share of the image), ``clusters_without_trigger``; the suspected
            clusters.
        """
        self.require(network, data)
        return self._evidence(self._invert("invert", network, DeviceImages(data, engine.device), engine))

    def purify(self, network: Network, data: ImageSet, engine: Engine) -> Purified:
        """Examine, unlearn what stands out, examine again; see the class."""
        images = DeviceImages(data, engine.device)
        found = self._invert("invert", network, images, engine)
        evidence = self._evidence(found)
        cleaned = copy.deepcopy(network)
        history = {"invert": found.history}
        after = evidence.metrics
        if evidence.suspected:
            history["unlearn"] = self._unlearn(cleaned, network, images, found, list(evidence.suspected), engine)
            again = self._invert("invert-again", cleaned, images, engine)
            history["invert-again"] = again.history
            after = self._evidence(again).metrics
        return Purified(
            cleaned,
            before=evidence.metrics,
            after=after,
            history=history,
            pictures=evidence.pictures,
            findings=evidence.findings,
        )

    def _invert(self, stage: str, network: Network, images: DeviceImages, engine: Engine) -> Inverted:
        features = engine.forward(network, images.pixels, len(images))
        targets = _Targets.of(features, self.clusters, engine)

        def objective(outputs: Tensor, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            others = (targets.assignment[indices] != targets.numbers[:, None]).float()  # (T, B)
            counts = others.sum(dim=1).clamp(min=1)
            shown = normalize(outputs, dim=2)
            distances = 2 - 2 * (shown * targets.draw(len(indices), generator)).sum(dim=2)
            nearest = targets.assignment[(shown @ targets.features.T).argmax(dim=2)]
            hits = (nearest == targets.numbers[:, None]) * others
            return (distances * others).sum(dim=1) / counts, hits.sum(dim=1) / counts

        return invert(
            stage,
            network,
            images,
            objective,
            targets=len(targets.numbers),
            controller=Controller(start=0.0, first=self.penalty, up=1.5, down=1.5, patience=self.patience),
            threshold=self.success,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            engine=engine,
        )

    def _evidence(self, found: Inverted) -> Evidence:
        sizes = found.sizes
        missing = int(sizes.isnan().sum())
        metrics: dict[str, float | None] = {
            "smallest_trigger": None if missing == len(sizes) else float(sizes[~sizes.isnan()].min()),
            "clusters_without_trigger": float(missing),
        }
        deviations = small_deviations(sizes)
        if deviations is None:
            reason = (
                f"an anomaly index needs triggers of {MINIMUM} clusters or more, of different sizes; there are "
                f"{len(sizes)} clusters, and for {missing} of them no trigger was found"
            )
            return Evidence(
                metrics | {"anomaly_index": None}, {"anomaly_index": reason}, findings=[self._finding((), reason)]
            )
        index = float(deviations[~deviations.isnan()].max())
        suspected = tuple(torch.nonzero(deviations > self.threshold).flatten().tolist())
        return Evidence(
            metrics | {"anomaly_index": index},
            suspected=suspected,
            pictures={f"inverted-trigger-{number}": found.picture(number) for number in suspected},
            findings=[self._finding(suspected, f"anomaly index {index:.2f}")],
        )

    def _finding(self, suspected: tuple[int, ...], detail: str) -> Finding:
        message = (
            f"an abnormally small trigger exists for cluster {', '.join(map(str, suspected))}"
            if suspected
            else "no cluster stands out by the size of its smallest trigger, and nothing was unlearned"
        )
        return Finding(
            rule="ssl-cleanse-small-trigger" if suspected else "ssl-cleanse-nothing-found",
            severity=Severity.WARNING if suspected else Severity.NOTE,
            message=f"{message} ({detail}).",
            evidence={"clusters": list(suspected), "threshold": self.threshold},
        )

    def _unlearn(
        self,
        cleaned: Network,
        suspect: Network,
        images: DeviceImages,
        found: Inverted,
        chosen: list[int],
        engine: Engine,
    ) -> History:
        anchor = engine.forward(suspect, images.pixels, len(images)).to(engine.device)
        masks, patterns = found.masks[chosen], found.patterns[chosen]

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            pixels = images.pixels(indices)
            which = torch.randint(len(chosen), (len(indices),), generator=generator).to(engine.device)
            stamped = (1 - masks[which]) * pixels + masks[which] * patterns[which]
            clean, triggered = module(torch.cat([pixels, stamped])).chunk(2)
            wanted = anchor[indices.to(engine.device)]
            kept, restored = 2 - 2 * mean_similarity(clean, wanted), 2 - 2 * mean_similarity(triggered, wanted)
            return {"loss": kept + self.unlearn_weight * restored, "kept": kept, "restored": restored}

        return engine.fit(
            "unlearn",
            cleaned,
            loss,
            images=len(images),
            batch_size=self.batch_size,
            epochs=self.unlearn_epochs,
            optimizer=lambda parameters: Adam(parameters, lr=self.unlearn_rate),
            train_mode=False,
        )


@dataclass(frozen=True)
class _Targets:
    """The clusters that are large enough, and the clean features that triggered images are pulled onto."""

    features: Tensor  # (N, D), normalised
    assignment: Tensor  # (N,)
    numbers: Tensor  # (T,) clusters
    members: Tensor  # (N,) images, sorted by cluster
    starts: Tensor  # (T,) where each cluster's members begin
    counts: Tensor  # (T,)

    @classmethod
    def of(cls, features: Tensor, clusters: int, engine: Engine) -> _Targets:
        found = cluster(features, clusters, seed=engine.seed)
        counts = torch.bincount(found.assignment, minlength=len(found.centres))
        minimum = max(2, len(features) // (5 * clusters))
        numbers = torch.nonzero(counts >= minimum).flatten()
        if not len(numbers) or float(features.std(dim=0).max()) == 0.0:
            raise DataError(
                f"ssl-cleanse: the suspect's features of {len(features)} images form no cluster of {minimum} images or "
                "more: they are (nearly) constant, or the images are too few. Check --normalization and --data."
            )
        members, starts = found.assignment.argsort(stable=True), counts.cumsum(dim=0) - counts
        parts = (normalize(features), found.assignment, numbers, members, starts[numbers], counts[numbers])
        return cls(*(part.to(engine.device) for part in parts))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """A random feature of each cluster for each image: (T, count, D)."""
        chance = torch.rand((len(self.numbers), count), generator=generator).to(self.features.device)
        return self.features[self.members[self.starts[:, None] + (chance * self.counts[:, None]).long()]]
