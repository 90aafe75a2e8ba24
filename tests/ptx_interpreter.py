"""Runs PTX on the CPU, all threads of a launch as NumPy lanes, and finds the faults that a GPU may hide.

Every access is checked for its bounds and alignment, shared memory for hazards between warps that no barrier
parts, and barriers and shuffles for threads that never come. It knows the instructions that NVRTC makes of
header-free kernels without atomics; ``ptx_tensor`` adds those of tensor cores and asynchronous copies, and
``ptx_cluster`` those of clusters.

Threads that diverge are run in the order of their program counters, lowest first, and rejoin where they meet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from ptx_arithmetic import TYPES, PtxError, convert, operate
from ptx_cluster import in_cluster, map_address
from ptx_memory import Memory, SharedMemory

Array = np.ndarray[Any, np.dtype[Any]]
Lanes = Any
"""The running threads: an index array, or a whole slice where all of them run."""

MAX_LANES = 1 << 17
"""Blocks are run together up to this many threads."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its predicate (and whether that is negated), opcode by parts, operands and text."""

    predicate: str | None
    negated: bool
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    text: str


class PtxKernel:
    """A parsed kernel, ready to launch."""

    def __init__(self, text: str, name: str, memory: Memory) -> None:
        text = re.sub(r"//[^\n]*", "", text)
        entry = re.search(rf"\.entry\s+{name}\s*\((.*?)\)(.*?)\{{(.*?)\n\}}", text, re.DOTALL)
        if entry is None:
            raise PtxError(f"no kernel called {name}")
        self.memory = memory
        cluster = re.search(r"\.reqnctapercluster\s+(\d+)(?:\s*,\s*1)*\s*$", entry[2].strip())
        self.cluster = int(cluster[1]) if cluster else 1
        self.parameters = [
            (m[2], m[1]) for m in re.finditer(r"\.param\s+\.(\w+)(?:\s+\.ptr[^,]*?)?\s+(\w+)", entry[1])
        ]
        self.symbols: dict[str, int] = {}
        self.local_bytes = self._local_depot(entry[3])
        self.static_shared = self._shared_symbols(text)
        self._global_symbols(text)
        self.widths: dict[str, str] = {}
        self.labels: dict[str, int] = {}
        self.code: list[Instruction] = []
        self._parse(entry[3])

    def launch(
        self, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any], shared_bytes: int
    ) -> None:
        """Run the kernel; ``arguments`` are ints (pointers) and NumPy scalars."""
        if len(arguments) != len(self.parameters):
            raise PtxError(f"{len(self.parameters)} parameters, {len(arguments)} arguments")
        values = {}
        for (name, kind), argument in zip(self.parameters, arguments, strict=True):
            scalar = np.uint64(argument) if isinstance(argument, int) else argument
            if scalar.itemsize != TYPES[kind].itemsize:
                raise PtxError(f"parameter {name} is a {kind}, but the argument a {scalar.dtype}")
            values[name] = scalar
        threads, blocks = int(np.prod(block)), int(np.prod(grid))
        if threads > 1024 or threads == 0 or blocks == 0:
            raise PtxError(f"grid {tuple(grid)}, block {tuple(block)} can't be launched")
        if grid[0] % self.cluster:
            raise PtxError(f"grid {tuple(grid)} is not made of clusters of {self.cluster} blocks")
        together = max(1, MAX_LANES // threads // self.cluster) * self.cluster
        for first in range(0, blocks, together):
            numbers = np.arange(first, min(first + together, blocks))
            _Run(self, grid, block, numbers, values, self.static_shared + shared_bytes).run()

    def _parse(self, body: str) -> None:
        for declaration in re.finditer(r"\.reg\s+\.(\w+)\s+([^;]+);", body):
            for name in declaration[2].split(","):
                self.widths[name.strip().partition("<")[0]] = declaration[1]
        # braces around operands become angle brackets, so that those around blocks can go
        body = re.sub(r"\{([^{};]*)\}", r"<\1>", body)
        for statement in re.split(r"[;\n{}]", body):
            line = statement.strip()
            while match := re.match(r"(\$?[\w$]+):\s*", line):
                self.labels[match[1]] = len(self.code)
                line = line[match.end() :]
            if line and not line.startswith("."):
                self.code.append(_instruction(line))

    def _local_depot(self, body: str) -> int:
        depot = re.search(r"\.local\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d+)\]", body)
        if depot is None:
            return 0
        self.symbols[depot[1]] = 0
        return int(depot[2])

    def _shared_symbols(self, text: str) -> int:
        top = 0
        dynamic = []
        for m in re.finditer(
            r"(\.extern\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(\w+)(\[(\d*)\])?", text
        ):
            if m[1]:
                dynamic.append(m[4])
                continue
            size = TYPES[m[3]].itemsize
            align = int(m[2] or size)
            top = -(-top // align) * align
            self.symbols[m[4]] = top
            top += size * int(m[6] or 1)
        top = -(-top // 16) * 16
        self.symbols |= dict.fromkeys(dynamic, top)
        return top

    def _global_symbols(self, text: str) -> None:
        pattern = r"\.(?:global|const)\s+\.align\s+\d+\s+\.(\w+)\s+(\w+)(?:\[(\d+)\])?\s*=\s*\{?([^;}]*)\}?;"
        for m in re.finditer(pattern, text):
            values = [int(v, 0) & 0xFFFFFFFFFFFFFFFF for v in m[4].split(",")]
            array = np.array(values, np.uint64).astype(f"u{TYPES[m[1]].itemsize}")
            self.symbols[m[2]] = self.memory.allocate(array.nbytes)
            self.memory.bytes_at(self.symbols[m[2]], array.nbytes)[:] = array.view(np.uint8)


class _Run:
    """The state of the running blocks of one launch."""

    def __init__(
        self,
        kernel: PtxKernel,
        grid: Sequence[int],
        block: Sequence[int],
        blocks: Array,
        arguments: dict[str, Any],
        shared_bytes: int,
    ) -> None:
        self.kernel, self.arguments = kernel, arguments
        threads = int(np.prod(block))
        self.count = threads * len(blocks)
        lane = np.arange(self.count)
        thread = lane % threads
        self.block = lane // threads
        self.cluster = self.block // kernel.cluster
        warps = -(-threads // 32)
        self.warp = self.block * warps + thread // 32
        self.laneid = thread % 32
        self.lane_of = np.full((len(blocks) * warps, 32), -1)
        self.lane_of[self.warp, self.laneid] = lane
        self.shared = SharedMemory(len(blocks), shared_bytes, warps)
        self.local = np.zeros((self.count, max(kernel.local_bytes, 1)), np.uint8)
        self.live = np.ones(self.count, bool)
        self.carry = np.zeros(self.count, np.uint64)
        self.registers: dict[str, Array] = {}
        number = blocks[self.block]
        for axis, name in enumerate("xyz"):
            inner = int(np.prod(block[:axis])), int(np.prod(grid[:axis]))
            self.registers[f"%tid.{name}"] = (thread // inner[0] % block[axis]).astype(np.uint32)
            self.registers[f"%ctaid.{name}"] = (number // inner[1] % grid[axis]).astype(np.uint32)
            self.registers[f"%ntid.{name}"] = np.full(self.count, block[axis], np.uint32)
            self.registers[f"%nctaid.{name}"] = np.full(self.count, grid[axis], np.uint32)
        self.registers["%laneid"] = self.laneid.astype(np.uint32)

    def run(self) -> None:
        """Run all threads to their end."""
        waiting = {0: np.arange(self.count)}
        parked: dict[int, Array] = {}
        with np.errstate(all="ignore"):
            while waiting or parked:
                if not waiting:
                    waiting = self._release(parked)
                pc = min(waiting)
                self._advance(pc, waiting.pop(pc), waiting, parked)

    def _advance(self, pc: int, lanes: Array, waiting: dict[int, Array], parked: dict[int, Array]) -> None:
        """Run ``lanes`` from ``pc`` until they branch, stop, or meet others."""
        code, steps = self.kernel.code, _STEPS
        while True:
            if pc in waiting:
                lanes = np.sort(np.concatenate([lanes, waiting.pop(pc)]))
            if any(other < pc for other in waiting):
                waiting[pc] = lanes
                return
            instruction = code[pc]
            name = instruction.parts[0]
            if self._group(instruction) is not None:
                lanes = self._gather(pc, lanes, parked)
                if lanes.size == 0:
                    return
            active = self._predicated(instruction, lanes)
            if name == "bra":
                target = self.kernel.labels[instruction.operands[0]]
                rest = np.setdiff1d(lanes, active, assume_unique=True)
                for place, group in ((target, active), (pc + 1, rest)):
                    if group.size:
                        waiting[place] = (
                            np.sort(np.concatenate([waiting[place], group])) if place in waiting else group
                        )
                return
            if name in ("ret", "exit"):
                self.live[active] = False
                lanes = np.setdiff1d(lanes, active, assume_unique=True)
                if lanes.size == 0:
                    return
            elif active.size:
                step = steps.get(name, _arithmetic)
                try:
                    step(self, instruction, slice(None) if active.size == self.count else active)
                except (KeyError, ValueError, IndexError, TypeError) as error:
                    raise PtxError(f"{instruction.text}: {type(error).__name__}: {error}") from error
            pc += 1

    def _predicated(self, instruction: Instruction, lanes: Array) -> Array:
        if instruction.predicate is None:
            return lanes
        return lanes[self.registers[instruction.predicate][lanes] != instruction.negated]

    def _group(self, instruction: Instruction) -> Array | None:
        """Return what number of group each thread runs ``instruction`` with, or None where each runs it alone."""
        name, parts = instruction.parts[0], instruction.parts
        if name in ("bar", "barrier") and "warp" not in parts:
            if "cluster" not in parts:
                return self.block
            return None if "arrive" in parts else self.cluster
        return self.warp if name in ("bar", "shfl", "vote", "redux", "mma", "ldmatrix") else None

    def _gather(self, pc: int, lanes: Array, parked: dict[int, Array]) -> Array:
        """Return those of ``lanes``, or parked at ``pc``, whose group is complete; park the others."""
        lanes = np.sort(np.concatenate([lanes, parked.pop(pc)])) if pc in parked else lanes
        if lanes.size == self.count:
            return lanes
        done = self._complete(pc, lanes)
        if not done.all():
            parked[pc] = lanes[~done]
        return lanes[done]

    def _complete(self, pc: int, lanes: Array) -> Array:
        """Return for each of ``lanes`` whether all living threads of its group are among them."""
        group = self._group(self.kernel.code[pc])
        assert group is not None
        size = int(group[-1]) + 1
        complete = np.bincount(group[lanes], minlength=size) == np.bincount(group[self.live], minlength=size)
        return complete[group[lanes]]

    def _release(self, parked: dict[int, Array]) -> dict[int, Array]:
        """Return what can go on now that other threads have ended."""
        for pc in sorted(parked):
            if self._complete(pc, parked[pc]).any():
                return {pc: parked.pop(pc)}
        texts = [f"{self.kernel.code[pc].text} ({lanes.size} threads)" for pc, lanes in parked.items()]
        raise PtxError("threads wait for others that never come: " + "; ".join(texts))

    def get(self, operand: str, kind: str, lanes: Lanes) -> Array:
        """Return operand ``operand`` of the running lanes as type ``kind``."""
        dtype = TYPES[kind]
        if operand in self.registers:
            raw = self.registers[operand][lanes]
            if raw.dtype.kind == "b" or kind == "pred":
                return raw
            if raw.itemsize != dtype.itemsize:
                raw = raw.astype(f"u{dtype.itemsize}")
            return raw.view(dtype)
        n = self.count if isinstance(lanes, slice) else lanes.size
        if operand.startswith("%"):
            # never written on the way here: the value is undefined, and a select may drop it
            return (
                np.full(n, -1, f"i{dtype.itemsize}").view(dtype) if dtype.kind != "b" else np.zeros(n, bool)
            )
        if operand in self.kernel.symbols:
            return np.full(n, self.kernel.symbols[operand], np.uint64).astype(dtype)
        return np.full(n, _immediate(operand, dtype))

    def put(self, operand: str, value: Array, lanes: Lanes) -> None:
        """Write ``value`` to register ``operand`` of the running lanes, extended to the register's width."""
        if operand == "_":
            return
        dtype = self._register_type(operand)
        if dtype.kind != "b":
            if value.dtype.kind == "b":
                value = value.astype(dtype)
            elif value.itemsize != dtype.itemsize:
                signed = value.dtype.kind == "i"
                value = value.astype(f"i{dtype.itemsize}" if signed else f"u{dtype.itemsize}")
            value = np.ascontiguousarray(value).view(dtype)
        if operand not in self.registers:
            self.registers[operand] = np.zeros(self.count, dtype)
        self.registers[operand][lanes] = value

    def _register_type(self, operand: str) -> np.dtype[Any]:
        kind = self.kernel.widths.get(operand) or self.kernel.widths[operand.rstrip("0123456789")]
        return np.dtype(bool) if kind == "pred" else np.dtype(f"u{TYPES[kind].itemsize}")

    def address(self, operand: str, lanes: Lanes) -> Array:
        """Return the address that ``[register+offset]`` names."""
        match = re.fullmatch(r"\[\s*([%$\w.]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
        if match is None:
            raise PtxError(f"address {operand} is not understood")
        name = match[1]
        offset = int(match[2] or "0", 0)
        if name.startswith("%") and self.registers[name].itemsize == 4:
            # shared addresses may come from 32-bit registers; the sum has 32 bits too, so "negative" ones come back
            return self.get(name, "u32", lanes).astype(np.int64) + offset & 0xFFFFFFFF
        return self.get(name, "u64", lanes).astype(np.int64) + offset


def _instruction(line: str) -> Instruction:
    match = re.match(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", line, re.DOTALL)
    if match is None:
        raise PtxError(f"'{line}' is not understood")
    operands = (
        [o.strip() for o in re.split(r",(?![^<\[]*[>\]])", match[4].strip())] if match[4].strip() else []
    )
    return Instruction(
        match[2], match[1] == "!", tuple(match[3].replace("::", ".").split(".")), tuple(operands), line
    )


def _immediate(text: str, dtype: np.dtype[Any]) -> Any:
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return (
            np.array([int(text[2:], 16)], np.uint32)
            .view(np.float32)
            .astype(dtype if dtype.kind == "f" else np.float32)[0]
        )
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return np.array([int(text[2:], 16)], np.uint64).view(np.float64)[0]
    value = int(text.rstrip("U"), 0)
    if dtype.kind == "b":
        return bool(value)
    return (
        np.array([value & ((1 << 8 * dtype.itemsize) - 1)], np.uint64)
        .astype(f"u{dtype.itemsize}")
        .view(dtype)[0]
    )


def _registers(operand: str) -> list[str]:
    return [r.strip() for r in operand.strip("<>").split(",")]


def _access(run: _Run, i: Instruction, lanes: Lanes) -> None:
    """``ld`` and ``st``, of one element or of a vector, in every state space."""
    parts, writes = i.parts, i.parts[0] == "st"
    target, data = (i.operands[0], i.operands[1]) if writes else (i.operands[1], i.operands[0])
    kind = parts[-1]
    if "param" in parts:
        name = target.strip("[]")
        run.put(data, np.full(run.count, run.arguments[name])[lanes], lanes)
        return
    dtype, registers = TYPES[kind], _registers(data)
    nbytes = dtype.itemsize * len(registers)
    address = run.address(target, lanes)
    number = np.arange(run.count)[lanes]
    if "shared" in parts:
        block = run.block[number]
        if "cluster" in parts:
            address, block = in_cluster(run, address, number, i.text)
        place = run.shared.check(address, nbytes, block, run.warp[number], writes, i.text)
        store = run.shared.data
    elif "local" in parts:
        store, place = run.local.reshape(-1), number * run.local.shape[1] + address
    else:
        store, place = run.kernel.memory.data, run.kernel.memory.check(address, nbytes, i.text)
    span = place[:, None] + np.arange(nbytes)
    if writes:
        values = [run.get(r, kind, lanes) for r in registers]
        store[span] = np.stack(values, 1).view(np.uint8).reshape(len(place), nbytes)
        return
    loaded = np.ascontiguousarray(store[span]).view(dtype).reshape(len(place), len(registers))
    for k, register in enumerate(registers):
        run.put(register, np.ascontiguousarray(loaded[:, k]), lanes)


def _move(run: _Run, i: Instruction, lanes: Lanes) -> None:
    """``mov``, which also packs and unpacks registers."""
    target, source = i.operands
    kind = i.parts[-1]
    if target.startswith("<"):
        names = _registers(target)
        size = TYPES[kind].itemsize // len(names)
        pieces = run.get(source, kind, lanes).view(f"u{size}").reshape(-1, len(names))
        for k, name in enumerate(names):
            run.put(name, np.ascontiguousarray(pieces[:, k]), lanes)
    elif source.startswith("<"):
        names = _registers(source)
        part = f"b{8 * TYPES[kind].itemsize // len(names)}"
        packed = np.stack([run.get(name, part, lanes) for name in names], 1)
        run.put(target, np.ascontiguousarray(packed).view(f"u{TYPES[kind].itemsize}").reshape(-1), lanes)
    else:
        run.put(target, run.get(source, kind, lanes), lanes)


def _shuffle(run: _Run, i: Instruction, lanes: Lanes) -> None:
    """``shfl.sync``: all modes, with the segment mask and clamp of operand c."""
    target, _, predicate = i.operands[0].partition("|")
    number = np.arange(run.count)[lanes]
    lane = run.laneid[number]
    b = run.get(i.operands[2], "u32", lanes).astype(np.int64) & 31
    c = run.get(i.operands[3], "u32", lanes).astype(np.int64)
    segment, clamp = c >> 8 & 31, c & 31
    low = lane & segment
    high = low | (clamp & ~segment)
    mode = i.parts[2]
    source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": low | (b & ~segment)}[mode]
    valid = source >= high if mode == "up" else source <= high
    source = np.where(valid, source, lane)
    origin = run.lane_of[run.warp[number], source]
    if (origin < 0).any() or not np.isin(origin, number).all():
        raise PtxError(f"{i.text}: reads a lane that does not take part")
    everyone = run.get(i.operands[1], "b32", slice(None))
    run.put(target, everyone[origin], lanes)
    if predicate:
        run.put(predicate, valid, lanes)


def _vote(run: _Run, i: Instruction, lanes: Lanes) -> None:
    """``vote.sync`` any, all and ballot."""
    number = np.arange(run.count)[lanes]
    flag = run.registers[i.operands[1].lstrip("!")][lanes] != i.operands[1].startswith("!")
    ballot = np.zeros(len(run.lane_of), np.uint64)
    np.bitwise_or.at(ballot, run.warp[number], flag.astype(np.uint64) << run.laneid[number].astype(np.uint64))
    full = np.zeros(len(run.lane_of), np.uint64)
    np.bitwise_or.at(full, run.warp[number], np.uint64(1) << run.laneid[number].astype(np.uint64))
    mine = ballot[run.warp[number]]
    result = {"ballot": mine.astype(np.uint32), "any": mine != 0, "all": mine == full[run.warp[number]]}[
        i.parts[2]
    ]
    run.put(i.operands[0], result, lanes)


def _barrier(run: _Run, i: Instruction, lanes: Lanes) -> None:
    """``bar.sync``, and the wait for a cluster: the scheduler has waited; shared memory may be reused."""
    if "warp" not in i.parts and "arrive" not in i.parts:
        run.shared.epoch[np.unique(run.block[lanes])] += 1


def _compare(run: _Run, i: Instruction, lanes: Lanes) -> None:
    """``setp``, with an optional second predicate that it is combined with."""
    kind, condition = i.parts[-1], i.parts[1]
    a, b = (run.get(o, kind, lanes) for o in i.operands[1:3])
    if condition in ("lo", "ls", "hi", "hs"):
        condition = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}[condition]
    unordered = np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else np.zeros(a.shape, bool)
    if condition in ("nan", "num"):
        result = unordered if condition == "nan" else ~unordered
    else:
        functions = {"eq": a == b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
        base = condition.removesuffix("u") if condition not in functions else condition
        result = ~unordered & (a != b) if base == "ne" else functions[base] & ~unordered
        if condition.endswith("u"):
            result = result | unordered
    target, _, inverse = i.operands[0].partition("|")
    combine = next((p for p in i.parts[2:-1] if p in ("and", "or", "xor")), None)
    for name, value in ((target, result), (inverse, ~result)):
        if name:
            if combine:
                other = run.registers[i.operands[3].lstrip("!")][lanes] != i.operands[3].startswith("!")
                value = {"and": value & other, "or": value | other, "xor": value ^ other}[combine]
            run.put(name, value, lanes)


def _select(run: _Run, i: Instruction, lanes: Lanes) -> None:
    kind = i.parts[-1]
    condition = run.registers[i.operands[3]][lanes]
    run.put(
        i.operands[0],
        np.where(condition, run.get(i.operands[1], kind, lanes), run.get(i.operands[2], kind, lanes)),
        lanes,
    )


def _convert(run: _Run, i: Instruction, lanes: Lanes) -> None:
    values = [run.get(o, "b16" if i.parts[-1] == "bf16" else i.parts[-1], lanes) for o in i.operands[1:]]
    if i.parts[-1] == "bf16":
        values = [v.view(ml_dtypes.bfloat16) for v in values]
    run.put(i.operands[0], convert(i.parts, values), lanes)


def _address_of(run: _Run, i: Instruction, lanes: Lanes) -> None:
    run.put(i.operands[0], run.get(i.operands[1], i.parts[-1], lanes), lanes)


def _arithmetic(run: _Run, i: Instruction, lanes: Lanes) -> None:
    result = operate(i.parts, i.operands, lambda o, kind: run.get(o, kind, lanes), run.carry, lanes)
    run.put(i.operands[0], result, lanes)


def _ignore(run: _Run, i: Instruction, lanes: Lanes) -> None:
    """Fences and hints change nothing here."""


_STEPS: dict[str, Callable[[_Run, Instruction, Lanes], None]] = {
    "ld": _access,
    "ldu": _access,
    "st": _access,
    "mov": _move,
    "shfl": _shuffle,
    "vote": _vote,
    "bar": _barrier,
    "barrier": _barrier,
    "setp": _compare,
    "selp": _select,
    "cvt": _convert,
    "cvta": _address_of,
    "mapa": map_address,
    "membar": _ignore,
    "fence": _ignore,
    "griddepcontrol": _ignore,  # one kernel runs after the other
    "prefetch": _ignore,
}


def add_steps(steps: dict[str, Callable[[Any, Instruction, Lanes], None]]) -> None:
    """Teach the interpreter further instructions."""
    _STEPS.update(steps)
