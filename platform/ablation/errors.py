"""Errors that a person can act on. The command line prints their message and no traceback."""


class UserError(Exception):
    """Bad input or a bad situation: the message says what, where, what is allowed and what to do."""


def last_line(text: str | None) -> str:
    """What of a traceback or a process's last words is for people: the last line; "" for blank or None."""
    return (text or "").strip().rpartition("\n")[2].strip()
