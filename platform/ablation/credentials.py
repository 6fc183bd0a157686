"""Hides passwords in text that is printed or stored."""

from __future__ import annotations

import re

from sqlalchemy import URL

# Greedy up to the last "@": a password may contain an unescaped "@" or slash.
_IN_ADDRESS = re.compile(r"(?<=://)(?:[^\s/:@]*:\S*|[^\s/@]+)@")
_SECRET = re.compile("password|passwd|pwd|secret|token|key", re.IGNORECASE)
_IN_QUERY = re.compile(rf"([?&][^=&\s]*(?:{_SECRET.pattern})[^=&\s]*=)[^&\s'\"]*", re.IGNORECASE)


def hidden(text: str) -> str:
    """The text with *** for the account in every URL and for every secret in a URL's query."""
    return _IN_QUERY.sub(r"\1***", _IN_ADDRESS.sub("***@", text))


def without_password(url: URL) -> str:
    """A database's address without its password; usable where the environment has the password."""
    query = {name: value for name, value in url.query.items() if not _SECRET.search(name)}
    bare = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query)
    return bare.render_as_string()


def without_account(address: str) -> str:
    """A server's address without the user and the password in it."""
    return _IN_ADDRESS.sub("", address)
