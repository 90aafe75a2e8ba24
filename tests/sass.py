"""Counts machine instructions in a cubin without a disassembler: 16 bytes each, the opcode in the low 12 bits."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator

HMMA = 0x23C
"""``HMMA``: mma.sync of halves and of tf32, on sm_80 and sm_90."""
LDL, STL = 0x983, 0x387
"""Loads from and stores to local memory: spills."""
NOP = 0x918
"""``NOP``: fills a kernel's last lines up, on sm_80, sm_90a and sm_121."""

KIND = 0x1FF
"""The part of an opcode that tells the kind of instruction; the three bits above it tell the form of the operands."""
KINDS = {
    # on sm_80, sm_90a and sm_121
    "DFMA": 0x02B,
    "FFMA": 0x023,
    "HMMA": HMMA & KIND,
    "LDGSTS": 0x1AE,
    "LDL": LDL & KIND,
    "LDSM": 0x03B,
    "MUFU": 0x108,
    "STL": STL & KIND,
    # on sm_90a
    "HGMMA": 0x1F0,
    "IGMMA": 0x1F1,
    "QGMMA": 0x1F3,
    "STSM": 0x044,
    "UTMALDG": 0x1B4,
    "UTMASTG": 0x1B5,
}
"""By the names that nvdisasm 13.1 gives them: multiplications, on tensor cores or not; copies that pass registers by;
matrices from and to shared memory; special functions; spills."""
MEMORY = {0x180: "LD", 0x181: "LDG", 0x1AE: "LDGSTS", 0x1B4: "UTMALDG", 0x185: "ST", 0x186: "STG", 0x1B5: "UTMASTG",
          0x1A8: "ATOMG", 0x18E: "REDG"}  # fmt: skip
"""Accesses to memory that other kernels write, by kind."""
ACQBULK = 0x82E
"""``griddepcontrol.wait`` on sm_90a."""
READ_FROM = ("sm_80", "sm_90a", "sm_121")
"""Architectures whose code these numbers were read from; on others they may stand for something else."""


def opcodes(cubin: bytes) -> Counter[int]:
    """Return how often each opcode stands in the code sections of an ELF file of 64 bits."""
    found: Counter[int] = Counter()
    for name, offset, length in _sections(cubin):
        if name.startswith(b".text."):
            words = struct.iter_unpack("<QQ", cubin[offset : offset + length])
            found.update(low & 0xFFF for low, _ in words)
    return found


def before_wait(cubin: bytes) -> list[str] | None:
    """Return the accesses to memory that stand before the first ``ACQBULK`` of sm_90a's code; None without one."""
    for name, offset, length in _sections(cubin):
        if name.startswith(b".text."):
            words = [low & 0xFFF for low, _ in struct.iter_unpack("<QQ", cubin[offset : offset + length])]
            if ACQBULK not in words:
                return None
            ahead = words[: words.index(ACQBULK)]
            return [MEMORY[word & KIND] for word in ahead if word & KIND in MEMORY]
    return None


def kinds(found: Counter[int]) -> dict[str, int]:
    """Return the counts of the ``KINDS`` that are there at all, out of those of all opcodes."""
    counts = {
        name: sum(n for opcode, n in found.items() if opcode & KIND == kind) for name, kind in KINDS.items()
    }
    return {name: n for name, n in sorted(counts.items()) if n}


def static_shared(cubin: bytes, kernel: str) -> int:
    """Return the bytes of shared memory that the code of ``kernel`` declares, with what the system keeps from sm_90 on."""
    wanted = f".nv.shared.{kernel}".encode()
    return sum(length for name, _, length in _sections(cubin) if name == wanted)


def _sections(cubin: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset and bytes of the sections of an ELF file of 64 bits."""
    (section_offset,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, section_offset + i * size) for i in range(count)]
    start = headers[names][4]
    for name, _, _, _, offset, length in headers:
        yield cubin[start + name : cubin.index(b"\0", start + name)], offset, length
