"""Policies: the shipped files, what is refused, and what a report says about the file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from sanitize import Policy
from sanitize.cli import app
from sanitize.errors import ConfigError
from sanitize.policies import load_policy, policy_keys
from tests.test_docs import ROOT, table

SHIPPED = ROOT / "registry" / "policies"


def described_range(info: FieldInfo) -> str:
    """The range of a key as docs/policies.md writes it."""
    words = {Ge: "at least {0.ge:g}", Gt: "above {0.gt:g}", Le: "at most {0.le:g}", Lt: "below {0.lt:g}"}
    return ", ".join(words[type(rule)].format(rule) for rule in info.metadata if type(rule) in words) or "text"


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_default_file_is_the_default_policy_and_names_every_key():
    loaded = load_policy(SHIPPED / "default.yaml")
    assert loaded.model_dump(exclude={"file", "sha256"}) == Policy().model_dump(exclude={"file", "sha256"})
    keys = [line.partition(":")[0] for line in (SHIPPED / "default.yaml").read_text().splitlines() if ": " in line]
    assert [key for key in keys if not key.startswith("#")] == list(policy_keys())


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_policy_loads_under_the_name_of_its_file(path):
    assert load_policy(path).name == path.stem


def test_strict_is_stricter_than_the_default():
    strict, default = load_policy(SHIPPED / "strict.yaml"), Policy()
    for key in ("maximum_attack_success_rate", "maximum_clean_accuracy_loss", "false_alarm_rate"):
        assert getattr(strict, key) < getattr(default, key)
    for key in ("established_attack_success_rate", "minimum_references"):
        assert getattr(strict, key) > getattr(default, key)


def test_the_digest_is_that_of_the_file(tmp_path):
    path = write(tmp_path, "minimum_references: 7\n")
    policy = load_policy(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (policy.name, policy.file, policy.sha256) == ("mine", str(path), digest)
    assert policy.minimum_references == 7
    assert policy.reference == f"mine@sha256:{digest}"
    assert Policy(name="ours").reference == "ours"
    assert load_policy(write(tmp_path, "name: ours\n")).name == "ours"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("maximum_atack_success_rate: 0.1\n", "Did you mean maximum_attack_success_rate"),
        ("maximum_attack_success_rate: 1.5\n", "less than or equal to 1"),
        ("maximum_attack_success_rate: yes\n", "valid number"),
        ("maximum_attack_success_rate: '0.1'\n", "valid number"),
        ("maximum_clean_accuracy_loss: .nan\n", "finite"),
        ("false_alarm_rate: 0\n", "greater than 0"),
        ("minimum_references: 1\n", "greater than or equal to 2"),
        ("minimum_references: 5.5\n", "integer"),
        ("minimum_removal_bound: 1\n", "less than 1"),
        ("established_attack_success_rate: 0.1\n", "must be above"),
        ("sha256: abc\n", "unknown key 'sha256'"),
        ("name: ''\n", "at least 1 character"),
        ("", "Keys: name"),
        ("- a\n", "Keys: name"),
        ("a: [1\n", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_path_and_the_reason(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as refused:
        load_policy(path)
    assert str(path) in str(refused.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--policy"):
        load_policy(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="--policy"):
        load_policy(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01\x80")
    with pytest.raises(ConfigError, match="not YAML"):
        load_policy(tmp_path / "binary.yaml")


def test_a_wrong_key_in_python_is_named():
    with pytest.raises(ConfigError, match="Did you mean minimum_references"):
        Policy(minimum_reference=3)


def test_the_reference_page_is_that_of_the_code():
    documented = table(ROOT / "docs/policies.md", "key")
    assert documented == [
        [
            f"`{name}`",
            str(info.default),
            described_range(info),
            (info.json_schema_extra or {}).get("verdict", "all"),
            info.description,
        ]
        for name, info in policy_keys().items()
    ]


@pytest.mark.parametrize("command", ["encoder", "classifier", "scan"])
def test_a_refused_policy_is_one_paragraph_before_any_work(command, tmp_path):
    path = write(tmp_path, "minimum_refs: 3\n")
    method = "feature-collapse" if command == "scan" else "fine-tune"
    result = CliRunner().invoke(app, [command, "models:/x/1", "--method", method, "--policy", str(path)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert "unknown key 'minimum_refs'" in result.stderr
