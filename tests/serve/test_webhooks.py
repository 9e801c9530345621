"""Signatures against MLflow's own, and everything that must not get in."""

from __future__ import annotations

import json

import pytest
from mlflow.webhooks import constants
from mlflow.webhooks.delivery import _generate_hmac_signature

from sanitize.serve import webhooks
from sanitize.serve.webhooks import MAX_AGE, Refused, check, sign

SECRET = "a secret of some length"
NOW = 1_800_000_000.0
BODY = json.dumps(
    {
        "entity": "model_version_alias",
        "action": "created",
        "timestamp": "2027-01-15T08:00:00",
        "data": {"name": "modèle", "alias": "candidate", "version": "3"},
    }
).encode()


def headers(
    body: bytes = BODY, *, sent: object = int(NOW), secret: str = SECRET, delivery: str = "d-1"
) -> dict[str, str]:
    signature = _generate_hmac_signature(secret, delivery, str(sent), body.decode())
    return {"X-MLflow-Signature": signature, "X-MLflow-Timestamp": str(sent), "X-MLflow-Delivery-Id": delivery}


def test_the_names_are_mlflows():
    ours = (webhooks.DELIVERY_ID, webhooks.TIMESTAMP, webhooks.SIGNATURE)
    assert ours == tuple(
        name.lower()
        for name in (
            constants.WEBHOOK_DELIVERY_ID_HEADER,
            constants.WEBHOOK_TIMESTAMP_HEADER,
            constants.WEBHOOK_SIGNATURE_HEADER,
        )
    )
    assert webhooks.VERSION == constants.WEBHOOK_SIGNATURE_VERSION


def test_the_signature_is_mlflows():
    assert sign(SECRET, "d-1", "17", BODY) == _generate_hmac_signature(SECRET, "d-1", "17", BODY.decode())


def test_a_good_delivery_is_read():
    delivery = check({k.lower(): v for k, v in headers().items()}, BODY, secret=SECRET, now=NOW + 5)
    assert (delivery.id, delivery.event) == ("d-1", "model_version_alias.created")
    assert delivery.data == {"name": "modèle", "alias": "candidate", "version": "3"}


@pytest.mark.parametrize("age", [MAX_AGE + 1, -MAX_AGE - 1])
def test_age(age: int):
    assert check(headers(sent=int(NOW - age) + (1 if age > 0 else -1)), BODY, secret=SECRET, now=NOW)
    with pytest.raises(Refused, match="old, or from the future") as caught:
        check(headers(sent=int(NOW - age)), BODY, secret=SECRET, now=NOW)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("change", "body"),
    [
        ({}, BODY + b" "),
        ({"X-MLflow-Signature": ""}, BODY),
        ({"X-MLflow-Signature": headers(secret="another secret")["X-MLflow-Signature"]}, BODY),
        ({"X-MLflow-Signature": headers()["X-MLflow-Signature"].removeprefix("v1,")}, BODY),
        ({"X-MLflow-Signature": "v1,\u00fc"}, BODY),
        ({"X-MLflow-Timestamp": str(int(NOW) + 1)}, BODY),
        ({"X-MLflow-Delivery-Id": "d-2"}, BODY),
        ({"X-MLflow-Delivery-Id": ""}, BODY),
    ],
)
def test_whatever_was_changed_breaks_the_signature(change: dict[str, str], body: bytes):
    with pytest.raises(Refused, match="signature") as caught:
        check(headers() | change, body, secret=SECRET, now=NOW)
    assert caught.value.status == 401


def test_nothing_is_parsed_before_the_signature_is_right():
    with pytest.raises(Refused, match="signature"):
        check({}, b"[" * 100_000, secret=SECRET, now=NOW)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"[" * 100_000, b'{"entity": "a", "action": "b", "data": 3}'])
def test_what_is_no_event(body: bytes):
    with pytest.raises(Refused, match="not an event") as caught:
        check(headers(body), body, secret=SECRET, now=NOW)
    assert caught.value.status == 400


@pytest.mark.parametrize("wrong", [{"sent": "soon"}, {"sent": "\u0663"}, {"delivery": "d" * 300}])
def test_odd_headers(wrong: dict[str, object]):
    with pytest.raises(Refused):
        check(headers(**wrong), BODY, secret=SECRET, now=NOW)
