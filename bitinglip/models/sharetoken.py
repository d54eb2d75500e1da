"""What says that one may have the files of a revision for a while: signed by who hands it out, pure."""

from __future__ import annotations

import hashlib
import hmac


def token_for(secret: bytes, reference: str, revision: str, expires_at_s: int) -> str:
    """Return a token for a revision's files.

    Args:
        secret: Known to the agent and its share alone.
        reference: The model's name.
        revision: The revision.
        expires_at_s: Unix time until which it is good.
    """
    return f"{expires_at_s}.{_signature(secret, reference, revision, expires_at_s)}"


def is_good(token: str, secret: bytes, reference: str, revision: str, now_s: float) -> bool:
    """Return whether a token was signed with our secret for this revision, and is still good."""
    expires, _, signature = token.partition(".")
    if not (expires.isascii() and expires.isdecimal() and len(expires) < 16):
        return False
    right = hmac.compare_digest(signature.encode(), _signature(secret, reference, revision, int(expires)).encode())
    return right and now_s < int(expires)


def _signature(secret: bytes, reference: str, revision: str, expires_at_s: int) -> str:
    # By the name of its folder, which is what a request names; the parts cannot contain what is between them.
    text = f"{reference.replace('/', '--')}\n{revision}\n{expires_at_s}"
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
