"""SIG: a faint wave over images of one class, labels kept."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from sanitize.attacks.base import Paper
from sanitize.attacks.poisoning import LabelledAttack, Stamp
from sanitize.data import ImageSet, PatchTrigger
from sanitize.data.triggers import Target, sinusoid
from sanitize.training import Engine


class SIG(LabelledAttack):
    """SIG (Barni, Kallas, Tondi; ICIP 2019): ``x + delta sin(2 pi f j / width)`` in column j, clipped; clean label.

    Poisoned images are right-labelled images of the target class. The wave is stronger at test time.

    Differs from the paper: the amplitudes, 40 in training and 60 at test time, are those of D-ST. A trigger that is
    given is used as it is, in training and at test time.

    Example:
        >>> from sanitize.data import load_images
        >>> poisoned = SIG(target=3, rate=0.5).poison(load_images("digits#0:200"), Engine(device="cpu"))
        >>> bool((poisoned.data.labels == poisoned.truth.labels).all())
        True
    """

    name: ClassVar[str] = "sig"
    summary: ClassVar[str] = "poison labelled training images: a faint wave on one class, labels kept"
    paper: ClassVar[Paper] = Paper(
        "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning",
        "Barni, Kallas, Tondi; ICIP 2019",
        "https://arxiv.org/abs/1902.11237",
    )
    default_triggers: ClassVar[str] = "a sine wave along the rows, stronger at test time"

    label_mode: Literal["clean-label"] = Field(  # type: ignore[misc]
        "clean-label", description="images of the target class keep their label"
    )
    amplitude: float = Field(40.0, gt=0, le=255, description="of the wave in training, of 255")
    test_amplitude: float = Field(60.0, gt=0, le=255, description="of the wave at test time, of 255")
    frequency: float = Field(6.0, gt=0, description="periods across the image")

    def own_trigger(self, data: ImageSet, target: Target, engine: Engine) -> Stamp:
        """The waves; see `LabelledAttack.own_trigger`."""

        def wave(amplitude: float) -> PatchTrigger:
            picture = sinusoid(data.image_size, amplitude / 255, self.frequency)
            return PatchTrigger(picture, mode="add", position=(0, 0), target=target, name="wave")

        return Stamp(wave(self.amplitude), wave(self.test_amplitude))
