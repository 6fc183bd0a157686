"""The check that every config class makes of its values."""


def require(ok: bool, message: str) -> None:
    """Raises `ValueError(message)` unless `ok`."""
    if not ok:
        raise ValueError(message)
