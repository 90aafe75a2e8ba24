"""Counts machine instructions in a cubin without a disassembler: 16 bytes each, the opcode in the low 12 bits."""

from __future__ import annotations

import struct
from collections import Counter

HMMA = 0x23C
"""``HMMA``: mma.sync of halves and of tf32, on sm_80 and sm_90."""
LDL, STL = 0x983, 0x387
"""Loads from and stores to local memory: spills."""


def opcodes(cubin: bytes) -> Counter[int]:
    """Return how often each opcode stands in the code sections of an ELF file of 64 bits."""
    (section_offset,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, section_offset + i * size) for i in range(count)]
    start = headers[names][4]
    found: Counter[int] = Counter()
    for name, _, _, _, offset, length in headers:
        if cubin[start + name :].startswith(b".text."):
            words = struct.iter_unpack("<QQ", cubin[offset : offset + length])
            found.update(low & 0xFFF for low, _ in words)
    return found
