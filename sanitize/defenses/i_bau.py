"""I-BAU: find the one perturbation that fools the network most, and unlearn it, with implicit hypergradients."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam

from sanitize.data import DeviceImages, ImageSet, batches
from sanitize.data.labels import training_labels
from sanitize.defenses.base import Need, Paper, Purified, Purifier
from sanitize.functional.hypergradient import implicit_term
from sanitize.functional.linear_head import fit_linear_head
from sanitize.functional.similarity import centred_similarity
from sanitize.suspects.networks import Network
from sanitize.training import Engine
from sanitize.types import ModelKind


class IBAU(Purifier):
    """Adversarial Unlearning of Backdoors via Implicit Hypergradient, for classifiers and encoders, with labels.

    ``min over theta of max over delta of CE(f(x + delta), y)`` with one delta for all images (Zeng et al. 2022, eq. 1).
    Each round finds delta by gradient ascent, then makes one pass of outer steps, whose gradient takes
    into account that delta depends on theta (eq. 3, by fixed-point iteration). The network stays in eval mode.

    An encoder gets a linear head, fitted on its frozen features; both are then trained together, and the head is
    thrown away: heads downstream must be refitted.

    Differs from the paper:
        - At least one image of a batch gets delta. The authors' code rounds their share down, so that with fewer than
          100 images a batch nobody gets it and the method is plain fine-tuning.
        - Delta is projected onto a ball, as the paper has it; the authors' code leaves that out, and there delta grows
          to hundreds of times the images' range on small networks. It is sought in a number of steps, not in one pass,
          which a few hundred images end too early.
        - The batch of the inner step is drawn anew in each round; the authors' code takes the first of all.
        - Encoders, which the paper does not have.

    Example:
        >>> IBAU(rounds=3).rounds
        3
    """

    name: ClassVar[str] = "i-bau"
    summary: ClassVar[str] = "minimax with one perturbation for all images and implicit hypergradients; needs labels"
    paper: ClassVar[Paper] = Paper(
        "Adversarial Unlearning of Backdoors via Implicit Hypergradient",
        "Zeng, Chen, Park, Mao, Jin, Jia; ICLR 2022",
        "https://arxiv.org/abs/2110.03735",
    )
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"encoder", "classifier"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL, Need.IMAGES, Need.LABELS, Need.CLEAN_IMAGES})
    minimum_images: ClassVar[int] = 16

    rounds: int = Field(5, ge=1, description="how often a perturbation is found and unlearned, one pass each")
    batch_size: int = Field(100, ge=1, description="images a step, inner and outer")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam, for the network")
    inner_learning_rate: float = Field(10.0, gt=0, description="of gradient ascent, for the perturbation")
    inner_steps: int = Field(
        50, ge=1, description="of gradient ascent in each round", json_schema_extra={"paper": "one pass (50 steps)"}
    )
    radius: float = Field(
        0.2,
        gt=0,
        description="largest root mean square of the perturbation, whose values are in the images' [0, 1]",
        json_schema_extra={"paper": "no bound in the code"},
    )
    penalty: float = Field(1e-3, ge=0, description="weight of the perturbation's squared norm in the inner objective")
    perturbed_share: float = Field(
        0.01, gt=0, le=1, description="share of each batch that gets the perturbation in an outer step; one at least"
    )
    hypergradient_steps: int = Field(5, ge=1, description="K: fixed-point iterations of the implicit hypergradient")
    hypergradient_rate: float = Field(0.1, gt=0, description="step of the inner map that is differentiated")

    def purify(self, network: Network, data: ImageSet, engine: Engine) -> Purified:
        """All rounds; see the class.

        Raises:
            DataError: Labels are missing, are all the same, or name classes that the classifier does not have.
        """
        is_classifier = network.spec.kind == "classifier"
        labels = training_labels(data, self.name, classes=network.spec.output_size if is_classifier else None)
        images = DeviceImages(data, engine.device)
        before = engine.forward(network, images.pixels, len(images))
        cleaned = copy.deepcopy(network).to(engine.device)
        trained: nn.Module = cleaned
        if not is_classifier:
            labels = torch.unique(labels, return_inverse=True)[1]
            trained = nn.Sequential(cleaned, fit_linear_head(before, labels).to(engine.device))
        adversary = _Adversary(self, engine, images)
        first = adversary.find(trained, engine.generator("i-bau/before"))
        flipped_before = adversary.flipped(trained, first)
        wanted = labels.to(engine.device)

        def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            delta = adversary.delta.detach().requires_grad_()
            indices = indices.to(engine.device)
            pixels = images.pixels(indices)
            chosen = max(1, round(self.perturbed_share * len(indices)))
            outer = cross_entropy(module(torch.cat([pixels[:chosen] + delta, pixels[chosen:]])), wanted[indices])
            (outer_gradient,) = torch.autograd.grad(outer, delta, retain_graph=True)
            with engine.fabric.autocast():
                inner = adversary.objective(trained, delta, adversary.batch, wanted[adversary.batch])
                (gradient,) = torch.autograd.grad(inner, delta, create_graph=True)
            term = implicit_term(
                delta - self.hypergradient_rate * gradient, delta, outer_gradient, steps=self.hypergradient_steps
            )
            return {"loss": outer + term - term.detach()}  # the value of one, the gradients of both

        history = engine.fit(
            self.name,
            trained,
            loss,
            images=len(images),
            batch_size=self.batch_size,
            epochs=self.rounds,
            optimizer=lambda parameters: Adam(parameters, lr=self.learning_rate),
            train_mode=False,
            companion=adversary,
        )
        after = engine.forward(cleaned, images.pixels, len(images))
        last = adversary.find(trained, engine.generator("i-bau/after"))
        return Purified(
            cleaned,
            before={"flipped_by_perturbation": flipped_before, "clean_similarity": 1.0},
            after={
                "flipped_by_perturbation": adversary.flipped(trained, last),
                "clean_similarity": float(centred_similarity(before, after).mean()),
            },
            history={self.name: history},
            pictures={"perturbation": (0.5 + first[0] / (2 * first.abs().max().clamp(min=1e-12))).cpu()},
        )


@dataclass
class _Adversary:
    """Finds the perturbation before each round."""

    options: IBAU
    engine: Engine
    images: DeviceImages

    def __post_init__(self) -> None:
        self.delta = torch.zeros_like(self.images.pixels(slice(0, 1)))
        self.batch = torch.zeros(1, dtype=torch.int64, device=self.engine.device)

    def before_epoch(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        self.delta = self.find(network, generator)
        count = min(self.options.batch_size, len(self.images))
        self.batch = torch.randperm(len(self.images), generator=generator)[:count].to(self.engine.device)
        return {"perturbation_norm": float(self.delta.norm())}

    def find(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """The perturbation (1, 3, H, W) after all steps of ascent; labels are the network's own predictions."""
        delta = torch.zeros_like(self.delta)
        largest = self.options.radius * delta.numel() ** 0.5
        for indices in itertools.islice(self._endless(generator), self.options.inner_steps):
            delta.requires_grad_()
            with self.engine.fabric.autocast():
                with torch.no_grad():
                    predicted = network(self.images.pixels(indices)).argmax(dim=1)
                objective = self.objective(network, delta, indices, predicted)
            (gradient,) = torch.autograd.grad(objective, delta)
            delta = (delta - self.options.inner_learning_rate * gradient).detach()
            delta = delta * (largest / delta.norm().clamp(min=largest))
        return delta

    def _endless(self, generator: torch.Generator) -> Iterator[Tensor]:
        while True:
            yield from batches(len(self.images), self.options.batch_size, generator)

    def objective(self, network: nn.Module, delta: Tensor, indices: Tensor, labels: Tensor) -> Tensor:
        """What the perturbation minimises: minus the cross-entropy, plus its own squared norm."""
        fooled = cross_entropy(network(self.images.pixels(indices) + delta), labels)
        return self.options.penalty * delta.square().sum() - fooled

    def flipped(self, network: nn.Module, delta: Tensor) -> float:
        """Share of the images whose class the perturbation changes."""
        clean = self.engine.forward(network, self.images.pixels, len(self.images))
        fooled = self.engine.forward(network, lambda indices: self.images.pixels(indices) + delta, len(self.images))
        return float((clean.argmax(dim=1) != fooled.argmax(dim=1)).float().mean())

    def state_dict(self) -> dict[str, Any]:
        return {"delta": self.delta, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.delta, self.batch = state["delta"].to(self.engine.device), state["batch"].to(self.engine.device)
