"""Errors that a person can act on. The command line prints their message and no traceback."""


class UserError(Exception):
    """Bad input or a bad situation: the message says what, where, what is allowed and what to do."""
