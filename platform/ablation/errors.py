"""Errors that a user can act on. The command line prints their message without a traceback."""


class UserError(Exception):
    """Wrong input or a failed condition; the message names what failed, on what, and what to do."""


def last_line(text: str | None) -> str:
    """The last line of a traceback or a process's output; "" for blank text or None."""
    return (text or "").strip().rpartition("\n")[2].strip()
