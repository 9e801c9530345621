"""What PoisonCAM and PatchSearch share: the flip test of one window an image, its evidence, and the filter."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sanitize.data import DeviceImages, ImageSet
from sanitize.detection.base import DataDetector, Scores, Split
from sanitize.detection.features import clusters_of, features_of
from sanitize.detection.flip_test import Assigner, FlipRule, FlipTest, choose_flip_images, iterative_search
from sanitize.detection.poison_classifier import PoisonClassifier
from sanitize.detection.window_evidence import Evidence, Thresholds, weigh
from sanitize.detection.window_rounds import look_in_rounds, recognised
from sanitize.detection.window_search import Attention, Flip, WindowScores, WindowSearch
from sanitize.errors import DataError
from sanitize.functional.clusters import Clusters
from sanitize.functional.masks import cut
from sanitize.suspects.architectures import build
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import ModelKind

SMALL = 10_000  # images, below which all are scored


class WindowDetector(DataDetector):
    """Base of detectors that look for a patch which pulls other images into a cluster.

    1. Images are clustered by normalised features.
    2. A subclass finds the window that an image's cluster depends on most.
    3. The window is pasted on images near the centres; its score is the share that it brings into its own cluster.
    4. The best windows are weighed against windows from random places, see `sanitize.detection.window_evidence`.
    5. With evidence only: small networks learn the best windows on other images, and filter all images; then the
       windows of the images that are left are tried again, for there may be another trigger.

    Several processes share batches in steps 1 to 3, which give the bits of one process, and the training and filtering
    in step 5, which do so but for rounding.
    """

    kind: ClassVar[ModelKind] = "encoder"
    minimum_images: ClassVar[int] = 100

    window: int | None = Field(
        None,
        ge=2,
        description="side of the windows in px, 1.2 to 1.6 times the expected trigger's; 60 at 224 px when left out",
        json_schema_extra={"paper": 60},
    )
    clusters: int | None = Field(
        None,
        ge=2,
        description="of the features; a fiftieth of the images, 10 to 1000, when left out",
        json_schema_extra={"paper": 1000},
    )
    flip_images: int = Field(
        180, ge=1, description="images near the centres that windows are pasted on", json_schema_extra={"paper": 1000}
    )
    flip_test: Literal["halving", "plain"] = Field(
        "halving",
        description="drop the worse half of the windows after few images, or try all on all",
        json_schema_extra={"paper": "plain"},
    )
    first_flips: int = Field(
        6, ge=1, description="images of the first round of halving", json_schema_extra={"paper": "not used"}
    )
    flip_rule: FlipRule = Field(
        "to_source",
        description="count images that come into the window's cluster, or any change",
        json_schema_extra={"paper": "any"},
    )
    search: Literal["auto", "all", "iterative"] = Field(
        "auto",
        description="which images are scored; auto: all below 10,000",
        json_schema_extra={"paper": "iterative"},
    )
    per_cluster: int = Field(2, ge=1, description="iterative: images of a cluster that are scored in an iteration")
    dropped_clusters: float = Field(0.25, gt=0, lt=1, description="iterative: share dropped in an iteration")
    top: int = Field(20, ge=5, description="candidate triggers, k")
    rounds: int = Field(
        5,
        ge=1,
        description="after evidence, look again among the images that are left; rounds at most",
        json_schema_extra={"paper": 1},
    )
    false_alarm_rate: float = Field(
        0.01,
        ge=0.005,
        lt=1,
        description="of each of the two tests against windows from random places",
        json_schema_extra={"paper": "not used"},
    )
    minimum_score: float = Field(
        0.3, ge=0, le=1, description="mean of the top scores, at least", json_schema_extra={"paper": "not used"}
    )
    minimum_agreement: float = Field(
        1.5,
        ge=1,
        description="times that the top windows are nearer to each other than to random ones, at least",
        json_schema_extra={"paper": "not used"},
    )
    null_windows: int = Field(
        400, ge=100, description="windows from random places", json_schema_extra={"paper": "not used"}
    )
    dropped_share: float = Field(
        0.1, ge=0, lt=0.9, description="share of the images, those of the highest scores, that no negatives come from"
    )
    classifier: str = Field(
        "small-cnn", description="architecture of the poison classifier", json_schema_extra={"paper": "ResNet-10"}
    )
    networks: int = Field(
        3, ge=1, description="poison classifiers whose logits are averaged", json_schema_extra={"paper": 5}
    )
    iterations: int = Field(400, ge=20, description="steps of a classifier, at most", json_schema_extra={"paper": 2000})
    classifier_batch: int = Field(
        64, ge=4, description="images a step, half of them poisoned", json_schema_extra={"paper": 32}
    )
    jitter: float = Field(
        0.2, ge=0, le=1, description="colour changes of the classifier's images", json_schema_extra={"paper": 0.4}
    )
    grey: float = Field(
        0.0, ge=0, le=1, description="probability of grey images for the classifier", json_schema_extra={"paper": 0.2}
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of mirrored images for the classifier")
    batch_size: int = Field(
        256, ge=1, description="images that go through the network together; changes speed and memory only"
    )

    @abstractmethod
    def attention(self, assign: Assigner, image_size: int, engine: Engine) -> Attention:
        """What makes attention maps with the network and the clusters of `assign`."""

    def window_on(self, image_size: int) -> int:
        """Side of the windows in pixels."""
        return self.window or max(2, round(60 / 224 * image_size))

    def check(self, data: ImageSet) -> None:
        """See `DataDetector.check`.

        Raises:
            DataError: Fewer images than clusters or top windows ask for, or a window larger than the image.
            ConfigError: There is no such architecture for the classifier.
        """
        super().check(data)
        count, side, window = len(data), data.image_size, self.window_on(data.image_size)
        if self._clusters(data) > count:
            raise DataError(f"{self.name}: {count} images do not fall into {self.clusters} clusters. Lower clusters.")
        if 4 * self.top > count:
            raise DataError(f"{self.name}: {self.top} candidates are too many for {count} images. Lower top.")
        if window > side:
            raise DataError(f"{self.name}: a window of {window} px is larger than images of {side} px. Lower window.")
        build(self.classifier, kind="classifier", image_size=side, classes=2)

    def score(self, network: Network, data: ImageSet, engine: Engine) -> WindowScores:
        """Clusters, windows, flip tests, evidence, and, where there is some, the poison classifier.

        Memory, beside the images (uint8) and one row of features an image, which the data's `Room` may keep in files:
        a batch of images, 64 attention maps, and the images that centres are fitted to, see `clusters_of`.

        Raises:
            DataError: See `check`; the network takes another size; features are not finite, or all the same.
        """
        self.check(data)
        if data.image_size != network.spec.image_size:
            sizes = f"images have {data.image_size} px, and the network takes {network.spec.image_size} px"
            raise DataError(f"{self.name}: {sizes}. Load them with that image size.")
        images = DeviceImages(data, engine.device)
        with engine.recorder.stage(f"{self.name}-features"):
            features = features_of(network, data, images, engine, batch_size=self.batch_size, purpose=self.name)
        # Threads of k-means add up in any order.
        clusters = engine.processes.same(clusters_of(features, self._clusters(data), seed=engine.seed))
        assign = Assigner(network, clusters, engine, self.batch_size)
        window = self.window_on(data.image_size)
        found = WindowSearch(
            data,
            images,
            clusters.assignment,
            window,
            self.attention(assign, data.image_size, engine),
            self._flips(assign, data, clusters, window, engine),
            engine.processes,
        )
        order = engine.generator(f"{self.name}/search")
        if self.search == "all" or (self.search == "auto" and len(data) < SMALL):
            found.score(torch.randperm(len(data), generator=order))
        else:
            iterative_search(
                clusters.assignment,
                found.score,
                per_cluster=self.per_cluster,
                dropped=self.dropped_clusters,
                generator=order,
            )
        rounds = list(
            look_in_rounds(
                found,
                top=self.top,
                most=self.rounds,
                minimum_score=self.minimum_score,
                weigh=lambda search, top, number: self._weigh(data, search, top, number, engine),
                learn=lambda search, ranked, top, left, number: self._filter(
                    data, search, ranked, top, left, number, engine
                ),
            )
        )
        top = torch.cat([one.top for one in rounds])
        poison = [one.poison for one in rounds if one.poison is not None]
        return WindowScores(
            values=found.values,
            window=window,
            corners=found.corners,
            flips=found.flips,
            clusters=clusters.assignment,
            top=top,
            maps=found.maps(top),
            evidence=rounds[0].evidence,
            poison=torch.stack(poison).amax(dim=0) if poison else None,
            rounds=len(rounds),
        )

    def _weigh(self, data: ImageSet, search: WindowSearch, top: Tensor, number: int, engine: Engine) -> Evidence:
        name = self.name if number == 1 else f"{self.name}-{number}"
        return weigh(
            data.images,
            search.values,
            search.null(self.null_windows, top, engine.generator(f"{name}/null")),
            top,
            search.corners,
            search.clusters,
            search.window,
            thresholds=Thresholds(self.false_alarm_rate, self.minimum_score, self.minimum_agreement),
            generator=engine.generator(f"{name}/evidence"),
        )

    def _flips(self, assign: Assigner, data: ImageSet, clusters: Clusters, window: int, engine: Engine) -> Flip:
        chosen = choose_flip_images(clusters, self.flip_images, engine.generator(f"{self.name}/flip-images"))
        places = engine.generator(f"{self.name}/flip-places")
        shape = (len(chosen), 2)
        test = FlipTest(
            assign,
            data.images[chosen].to(engine.device),
            clusters.assignment[chosen].to(engine.device),
            torch.randint(data.image_size - window + 1, shape, generator=places).tolist(),
            self.flip_rule,
        )
        if self.flip_test == "plain":
            return test.plain
        return partial(test.halving, first=self.first_flips, keep=self.top)

    def _filter(
        self,
        data: ImageSet,
        found: WindowSearch,
        ranked: Tensor,
        top: Tensor,
        left: Tensor,
        number: int,
        engine: Engine,
    ) -> Tensor:
        """Probability of poison (N,), from networks that learn the top windows on images that are left."""
        scored = ranked[found.flips[ranked] > 0]
        bottom = scored[-self.top :]
        suspicious = torch.cat([ranked[: max(self.top, int(self.dropped_share * len(data)))], bottom])
        pool = left.clone()
        pool[suspicious] = False
        settings = PoisonClassifier(
            architecture=self.classifier,
            networks=self.networks,
            iterations=self.iterations,
            batch_size=self.classifier_batch,
            forward_batch=self.batch_size,
            jitter=self.jitter,
            grey=self.grey,
            flip=self.flip,
        )
        windows = cut(data.images[top], found.corners[top], found.window)
        negative = torch.nonzero(pool).flatten()
        return settings.classify(data, windows, negative, (top, bottom), engine, search=number)

    def split(self, scores: Scores) -> Split:
        """Poisoned is what the classifier takes for it; without evidence nothing."""
        assert isinstance(scores, WindowScores)  # from `score`
        nothing = torch.zeros(len(scores.values), dtype=torch.bool)
        evidence = scores.evidence
        if not evidence.convincing or scores.poison is None:
            return Split(
                ~nothing,
                nothing,
                False,
                evidence.reason,
                numbers=evidence.numbers,
                calibrated=self.false_alarm_rate,
                doubt=evidence.doubt,
            )
        poisoned = scores.poison > 0.5
        if not recognised(scores.poison, scores.top):
            known = int(poisoned[scores.top].sum())
            return Split(
                nothing,
                nothing,
                True,
                evidence.reason,
                numbers=evidence.numbers,
                calibrated=self.false_alarm_rate,
                doubt=f"the poison classifier recognises {known} of the {len(scores.top)} best windows, and is not "
                "trusted to remove anything; raise iterations",
            )
        reason = (
            f"{evidence.reason}; the poison classifier takes {int(poisoned.sum())} of {len(poisoned)} images for it"
            + (f", in {scores.rounds} rounds, each with evidence" if scores.rounds > 1 else "")
        )
        return Split(~poisoned, poisoned, True, reason, numbers=evidence.numbers, calibrated=self.false_alarm_rate)

    def _clusters(self, data: ImageSet) -> int:
        return self.clusters or min(1000, max(10, len(data) // 50))
