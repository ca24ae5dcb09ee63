"""Every random draw as a function of what it is for: (run seed, prompt, condition).

Nothing here knows workers, batches or row order, so a draw is the same wherever and whenever it is
made, and a single view or sample can be had again from a function call.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt


def prompt_id(text: str) -> int:
    """Name a text: signed 64-bit blake2b of its exact UTF-8 bytes, without any normalisation.

    A text that UTF-8 cannot hold (a lone surrogate) raises UnicodeEncodeError, a ValueError.
    """
    digest = blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def generator(seed: int, prompt_id: int, condition: str) -> np.random.Generator:
    """Return a fresh generator for one prompt under one condition of a run.

    Its state is a hash of the three, so streams of neighbouring seeds, prompts or views are
    unrelated. The bit generator is named because NumPy may change its default.
    """
    # The condition comes last: the two numbers before it hold no separator, so no two triples meet.
    name = f"{seed}/{prompt_id}/{condition}".encode()
    digest = blake2b(name, digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def sample_order(seed: int, prompt_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return the positions of `prompt_ids` in seeded random order; the first n are a sample of n.

    The order of the *ids* does not depend on the order in which they are given, and the sample of a
    subset is what the sample of the whole keeps of it. The hash is a bijection of 64 bits: distinct
    ids cannot tie, and equal ids keep their given order.
    """
    offset = np.uint64(
        int.from_bytes(blake2b(str(seed).encode(), digest_size=8).digest(), "little")
    )
    keys = np.asarray(prompt_ids, dtype=np.int64).astype(np.uint64) + offset
    # Spread every input bit over all output bits: the finaliser of SplitMix64, modulo 2^64.
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(keys ^ (keys >> np.uint64(31)), kind="stable")
