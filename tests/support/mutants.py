"""Damaged copies of image files, for tests of what a reader says of them."""

from __future__ import annotations

import zlib

import numpy as np


def mutate(data: bytes, other: bytes, rng: np.random.Generator, first: int = 0) -> bytes:
    """Flipped bits, wrong bytes, lengths and sizes, what is missing, doubled, and from another file.

    Args:
        data: of the image to damage.
        other: of another one.
        rng: what the damage depends on.
        first: bytes at the beginning that are spared, such as those that tell what kind of file it is.
    """
    mutant = bytearray(data)
    for _ in range(int(rng.integers(1, 8))):
        # Half of the damage goes to the header, where parsers stumble.
        stop = min(len(mutant), first + 600) if rng.random() < 0.5 else len(mutant)
        at = int(rng.integers(first, max(first + 1, stop)))
        match rng.integers(8):
            case 0:
                for bit in rng.integers(8 * first, 8 * max(first + 1, len(mutant)), 3):
                    if bit // 8 < len(mutant):
                        mutant[bit // 8] ^= 1 << (bit % 8)
            case 1:
                mutant[at : at + 1] = rng.bytes(1)
            case 2:
                # Lengths and sizes are two or four bytes wide, and these are the values that overflow them.
                width = int(rng.choice([2, 4]))
                value = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
                mutant[at : at + width] = (value % 256**width).to_bytes(width, str(rng.choice(["big", "little"])))
            case 3:
                del mutant[at : at + int(rng.integers(1, 60))]
            case 4:
                mutant[at:at] = rng.bytes(int(rng.integers(1, 60)))
            case 5:
                mutant[at:at] = mutant[at : at + int(rng.integers(1, 400))]
            case 6:
                start = int(rng.integers(0, len(other)))
                mutant[at : at + 100] = other[start : start + int(rng.integers(1, 200))]
            case 7:
                if rng.random() < 0.3:
                    del mutant[at:]
    # Checksums keep damage from a PNG's decoder; half of the mutants reach it.
    return with_checksums(bytes(mutant)) if rng.random() < 0.5 else bytes(mutant)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks all have their right checksum, as far as they can be told apart; other files as they are."""
    start = b"\x89PNG\r\n\x1a\n"
    if not data.startswith(start):
        return data
    fixed, at = bytearray(start), len(start)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        fixed += data[at:end] + zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(fixed) + data[at:]
