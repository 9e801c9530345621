"""`sanitize gate`: decide whether a version may be used, and move the alias `approved`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sanitize.cli import options

if TYPE_CHECKING:
    from sanitize.gate import Gate

Detector = Annotated[
    str, typer.Option("--detector", metavar="NAME", help="What the scan measures: feature-collapse or decree.")
]
DetectorSettings = Annotated[
    list[str] | None, typer.Option("--detector-set", metavar="KEY=VALUE", help="One setting of the scan. Repeatable.")
]
References = Annotated[
    list[str] | None,
    typer.Option("--reference", metavar="MODEL", help="A clean model of the same architecture. Repeatable."),
]
Waivers = Annotated[
    Path | None,
    typer.Option(
        "--waivers", metavar="FILE", help="Accepted findings; POLICY.waivers.yaml beside --policy if it exists."
    ),
]
Method = Annotated[
    str | None,
    typer.Option("--method", "-m", help="Defence that purifies a model which does not pass (`sanitize methods`)."),
]
ApproveInto = Annotated[
    str | None, typer.Option("--approve-into", metavar="NAME", help="Copy what is approved into this registered model.")
]
Alias = Annotated[str, typer.Option("--alias", help="The alias that is moved.")]


def gate(
    model: options.Model,
    policy: options.Policy = None,
    waivers: Waivers = None,
    method: Method = None,
    recipe: options.Recipe = None,
    settings: options.Settings = None,
    detector: Detector = "feature-collapse",
    detector_settings: DetectorSettings = None,
    reference: References = None,
    approve_into: ApproveInto = None,
    alias: Alias = "approved",
    data: options.Data = None,
    probe_data: options.ProbeData = None,
    test_data: options.TestData = None,
    trigger: options.Triggers = None,
    arch: options.Arch = None,
    normalization: options.Normalization = None,
    image_size: options.ImageSize = None,
    allow_stubbed: options.AllowStubbed = False,
    device: options.Device = "auto",
    precision: options.Precision = "32-true",
    seed: options.Seed = 0,
    tracking_uri: options.TrackingUri = None,
    format: options.Format = "table",
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Scan a version, decide by a policy, tag it, and move the alias `approved` to it, to a copy, or away.

    The same model, data, references and policy give the stored verdict at once.
    """
    from sanitize.cli.output import check_outputs, emit
    from sanitize.inputs import Request

    check_outputs(format, output)
    report = make_gate(
        policy=policy,
        waivers=waivers,
        method=method,
        recipe=recipe,
        settings=settings,
        detector=detector,
        detector_settings=detector_settings,
        reference=reference,
        approve_into=approve_into,
        alias=alias,
        device=device,
        precision=precision,
        seed=seed,
        tracking_uri=tracking_uri,
        quiet=quiet,
    ).run(
        Request(
            model=model,
            data=data,
            probe_data=probe_data,
            test_data=test_data,
            triggers=trigger or (),
            arch=arch,
            normalization=normalization,
            image_size=image_size,
            allow_stubbed=allow_stubbed,
        )
    )
    emit(report, format, output)
    raise typer.Exit(report.verdict.exit_code)


def make_gate(
    *,
    policy: Path | None,
    waivers: Path | None,
    method: str | None,
    recipe: str | None,
    settings: list[str] | None,
    detector: str,
    detector_settings: list[str] | None,
    reference: list[str] | None,
    approve_into: str | None,
    alias: str,
    device: str,
    precision: str,
    seed: int,
    tracking_uri: str | None,
    quiet: bool,
) -> Gate:
    """The gate that the options of `gate` and `serve` describe.

    Raises:
        ConfigError: An option does not fit.
    """
    from sanitize.defenses import Purifier
    from sanitize.detection.catalogue import model_detector_named
    from sanitize.errors import ConfigError
    from sanitize.gate import Gate, load_waivers
    from sanitize.gate.waivers import beside
    from sanitize.policies import load_policy
    from sanitize.recipes import configure
    from sanitize.training import Display

    defense = configure(method, recipe=recipe, settings=settings or []) if method or recipe else None
    if defense is not None and not isinstance(defense, Purifier):
        raise ConfigError(f"--method {defense.name} does not purify a model; `sanitize methods` lists those that do.")
    if defense is None and settings:
        raise ConfigError("--set changes a defence; name it with --method.")
    waivers = waivers or (beside(policy) if policy else None)
    return Gate(
        policy=load_policy(policy) if policy else None,
        detector=configure(
            detector, settings=detector_settings or [], named=model_detector_named, option="--detector-set"
        ),
        defense=defense,
        waivers=load_waivers(waivers) if waivers else (),
        references=reference or (),
        approve_into=approve_into,
        alias=alias,
        device=device,
        precision=precision,
        seed=seed,
        tracking_uri=tracking_uri,
        display=Display(quiet=quiet),
    )
