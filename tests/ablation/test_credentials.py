"""No password reaches a log, a lock file or the store."""

import pytest
from sqlalchemy import make_url

from ablation.credentials import hidden, without_password


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--store postgresql+psycopg://me:pw@host/db", "--store postgresql+psycopg://***@host/db"),
        ("https://token@host/path", "https://***@host/path"),
        ("http://me:a/b@c@host:5000", "http://***@host:5000"),
        (
            "'postgresql://host/db?user=me&password=pw&sslmode=on'",
            "'postgresql://host/db?user=me&password=***&sslmode=on'",
        ),
        ("s3://bucket/f?AWS_SECRET_ACCESS_KEY=pw x", "s3://bucket/f?AWS_SECRET_ACCESS_KEY=*** x"),
        ("ablation run --tables 3", "ablation run --tables 3"),
        ("s3://bucket/folder@2026", "s3://bucket/folder@2026"),
        ("http://host:5000/a", "http://host:5000/a"),
    ],
)
def test_secrets_of_every_address_are_hidden(text: str, shown: str) -> None:
    assert hidden(text) == shown


def test_an_address_without_its_password_can_still_be_typed() -> None:
    url = make_url("postgresql+psycopg://me:pw@host:5433/db?password=pw&sslmode=require")
    assert without_password(url) == "postgresql+psycopg://me@host:5433/db?sslmode=require"
