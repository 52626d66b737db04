"""Hashes of files."""

import hashlib


def sha256(filename, title, use_addnet_hash=False):
    with open(filename, "rb") as file:
        if use_addnet_hash:
            file.seek(int.from_bytes(file.read(8), "little") + 8)
        return hashlib.sha256(file.read()).hexdigest()


def sha256_from_cache(filename, title, use_addnet_hash=False):
    """Nothing is kept here."""
