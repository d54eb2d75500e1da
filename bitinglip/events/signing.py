"""Keys that sign the log: Ed25519 (RFC 8032), in PEM files that other tools read as well."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from bitinglip.errors import KeyUnusable

PRIVATE_MODE = 0o600


class PublicKey:
    """What tells whether a signature is that of its key."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.id = hashlib.sha256(self.raw).hexdigest()[:16]
        """Its name: the first 16 hexadecimal digits of the SHA-256 of the key."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file with a public key in PEM.

        Raises:
            KeyUnusable: there is none in it.
        """
        try:
            key = load_pem_public_key(path.read_bytes())
        except (OSError, ValueError) as error:
            raise KeyUnusable(path=str(path), problem=str(error)) from error
        if not isinstance(key, Ed25519PublicKey):
            raise KeyUnusable(path=str(path), problem="it is no Ed25519 key")
        return cls(key)

    @classmethod
    def of_base64(cls, text: str) -> Self | None:
        """Return the key of these 32 bytes in Base64; none if they are no key."""
        try:
            return cls(Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True)))
        except (ValueError, binascii.Error):
            return None

    @property
    def base64(self) -> str:
        """The key itself, 32 bytes in Base64."""
        return base64.b64encode(self.raw).decode()

    @property
    def pem(self) -> str:
        """The key as a PEM file."""
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def signed(self, message: bytes, signature: str) -> bool:
        """Tell whether this key has made a signature (Base64) of a message."""
        try:
            self._key.verify(base64.b64decode(signature, validate=True), message)
        except (InvalidSignature, ValueError, binascii.Error):
            return False
        return True


class SigningKey:
    """A private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @classmethod
    def make(cls) -> Self:
        """Return a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Read the key of a file; without the file, write a new key into it that only its owner may read.

        Raises:
            KeyUnusable: there is no key in it, or others may read it.
        """
        try:
            return cls.load(path) if path.exists() else cls._create(path)
        except FileExistsError:  # another process was faster
            return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the key of a file.

        Raises:
            KeyUnusable: there is no key in it, or others may read it.
        """
        try:
            if os.name == "posix" and path.stat().st_mode & 0o077:
                raise KeyUnusable(path=str(path), problem="others may read it (`chmod 600` takes that away)")
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise KeyUnusable(path=str(path), problem=str(error)) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyUnusable(path=str(path), problem="it is no Ed25519 key")
        return cls(key)

    @classmethod
    def _create(cls, path: Path) -> Self:
        made = cls.make()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}.new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(made._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
                os.fsync(file.fileno())
            os.link(draft, path)  # whole, and never over another one
        finally:
            draft.unlink()
        return made

    def sign(self, message: bytes) -> str:
        """Return the signature of a message, in Base64."""
        return base64.b64encode(self._key.sign(message)).decode()
