"""Distinct types for the hashes that a request is made into; all are `bytes` when the program runs.

Contains: four names. Must not depend on: how a hash is made, or who reads it.
"""

from __future__ import annotations

from typing import NewType

BlockDigest = NewType("BlockDigest", bytes)
"""The content of one block without markers, keyed by the seed of its namespace."""
PrefixHash = NewType("PrefixHash", bytes)
"""A prefix: its namespace, model, key parameters and the digests of its blocks up to the last one."""
StoreKey = NewType("StoreKey", bytes)
"""The name of a prefix's record in a shared store, made of its prefix hash by the store."""
TextPieceHash = NewType("TextPieceHash", bytes)
"""A long text up to the end of one of its pieces, keyed by the seed of its owner (`opt_ins.split_text`)."""
