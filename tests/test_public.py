"""The public surface: every name is there, nothing slow is imported early."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sanitize


def test_every_public_name_exists_and_is_listed():
    for name in sanitize.__all__:
        assert getattr(sanitize, name) is not None
    assert dir(sanitize) == sorted(sanitize.__all__)
    assert set(sanitize._HOMES) == set(sanitize.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Sanitiser"):
        sanitize.Sanitiser  # noqa: B018


def test_help_imports_neither_torch_nor_mlflow():
    code = (
        "import sys, typer.testing, sanitize.cli as cli;"
        "result = typer.testing.CliRunner().invoke(cli.app, ['--help']);"
        "assert result.exit_code == 0, result.output;"
        "slow = {'torch', 'mlflow', 'sklearn', 'onnx', 'matplotlib', 'pandas'} & set(sys.modules);"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_error_is_a_sanitize_error():
    errors = [getattr(sanitize, name) for name in sanitize.__all__ if name.endswith("Error")]
    assert len(errors) == 10
    assert all(issubclass(error, sanitize.SanitizeError) for error in errors)
