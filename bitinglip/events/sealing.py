"""Sealing: a private task's bytes under a key of its own (AES-256-GCM), and the digest of what it asked.

What is sealed is: a byte for the form, a nonce of 12 random bytes, the ciphertext with its tag. Whose it is and what
it is for are authenticated with it: bytes in the place of others do not open. A key seals at most a few million things,
far from where random nonces would repeat.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bitinglip.errors import SealBroken

KEY_BYTES = 32
NONCE_BYTES = 12
FORM = b"\x01"
CIPHER: Literal["aes-256-gcm"] = "aes-256-gcm"


def new_key() -> bytes:
    """Return a key that nobody has had."""
    return AESGCM.generate_key(KEY_BYTES * 8)


def seal(key: bytes, owner: str, role: str, body: bytes) -> bytes:
    """Return the bytes sealed; `owner` is a task (or batch, or schedule), `role` what they are of it, as `params`."""
    nonce = os.urandom(NONCE_BYTES)
    return FORM + nonce + AESGCM(key).encrypt(nonce, body, _about(owner, role))


def unseal(key: bytes, owner: str, role: str, sealed: bytes) -> bytes:
    """Return what was sealed.

    Raises:
        SealBroken: it was sealed by another key, for another owner or role, or has been changed.
    """
    nonce, rest = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
    if sealed[:1] != FORM:
        raise SealBroken(owner=owner, role=role)
    try:
        return AESGCM(key).decrypt(nonce, rest, _about(owner, role))
    except (InvalidTag, ValueError) as error:
        raise SealBroken(owner=owner, role=role) from error


def request_digest(key: bytes, request: bytes) -> str:
    """Return a digest by which a repeat of a request is known to who has the key; without it no guess can be tried."""
    of_requests = hmac.digest(key, b"bitinglip request", hashlib.sha256)
    return hmac.new(of_requests, request, hashlib.sha256).hexdigest()


def _about(owner: str, role: str) -> bytes:
    return f"bitinglip\0{owner}\0{role}".encode()
