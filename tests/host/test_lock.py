"""The lock file reads back what was written, byte for byte, and says what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import candidate, make_tactic, plugin, signature
from tactician.errors import LockError, LockMismatchError
from tactician.signature import OpSignature
from tactician.tactics.lock import LockFile
from tactician.tactics.record import CandidateRecord, Decision, Outcome
from tactician.tactics.registry import Candidate, PluginRef

CALL, OTHER = signature(), signature(7)
GOOD = make_tactic("Good", version=3)


def decision(call: OpSignature = CALL, nodes: tuple[str, ...] = ("a", "b"), owner: str = "acme") -> Decision:
    record = CandidateRecord(f"{owner}.good()", owner, Outcome.CHOSEN, version=3)
    return Decision(str(call), call.key, nodes, "fake", record.tactic, "default", (record,))


def lock() -> LockFile:
    plugins = [plugin("acme"), plugin("rival", "d7"), plugin("unused")]
    return LockFile.of(
        [decision(), decision(OTHER, ("c",), "rival")], plugins, target="fake", device="Fake 1"
    )


SIGNATURES = {"a": CALL, "b": CALL, "c": OTHER}


def offers(owner: PluginRef | None = None, tactic: Any = GOOD) -> dict[str, dict[str, Candidate]]:
    found = {
        CALL.key: candidate(tactic, owner or plugin("acme")),
        OTHER.key: candidate(GOOD, plugin("rival", "d7")),
    }
    return {key: {c.id: c} for key, c in found.items()}


def test_it_reads_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.lock.json"
    lock().save(path)
    first = path.read_bytes()
    assert LockFile.load(path) == lock()
    LockFile.load(path).save(path)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["m.lock.json"], "no temporary file stays behind"


def test_equal_choices_give_equal_bytes_in_whatever_order() -> None:
    decisions = [decision(OTHER, ("c",), "rival"), decision(nodes=("b",)), decision(nodes=("a",))]
    plugins = [plugin("rival", "d7"), plugin("acme")]
    assert LockFile.of(decisions, plugins, target="fake", device="Fake 1").encode() == lock().encode()


def test_a_person_can_read_it() -> None:
    plain = json.loads(lock().encode())
    assert plain["nodes"]["a"] == {
        "tactic": "acme.good()",
        "version": 3,
        "plugin": "acme",
        "signature": str(CALL),
        "key": CALL.key,
        "target": "fake",
    }
    assert plain["plugins"] == {
        "acme": {"version": "1.0", "digest": "d1"},
        "rival": {"version": "1.0", "digest": "d7"},
    }
    assert (plain["format"], plain["target"], plain["device"]) == (1, "fake", "Fake 1")
    lines = lock().encode().decode().splitlines()
    assert sum('"tactic"' in line for line in lines) == 3, "one line for each node's tactic"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{ no lock",
        "[]",
        '{"format": 1}',
        '{"format": 1, "nodes": {"a": 3}, "plugins": {}}',
        '{"format": 2, "nodes": {}, "plugins": {}}',
        '{"format": 1, "nodes": {}, "plugins": {}, "extra": 1}',
        "\xff\xfe",
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.lock.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LockError, match=r"m\.lock\.json"):
        LockFile.load(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(LockError, match=r"nothing\.json.*--lock alone"):
        LockFile.load(tmp_path / "nothing.json")
    with pytest.raises(LockError, match="can't write"):
        lock().save(tmp_path / "no folder" / "a.json")


def test_nothing_differs() -> None:
    assert lock().check(SIGNATURES, offers()) == []
    lock().require(SIGNATURES, offers())


@pytest.mark.parametrize(
    ("signatures", "candidates", "line"),
    [
        ({k: SIGNATURES[k] for k in "bc"}, offers(), "node 'a' is gone (test::Affine"),
        (SIGNATURES | {"d": CALL}, offers(), "node 'd' is new (test::Affine"),
        (SIGNATURES | {"a": OTHER}, offers(), "node 'a' has another signature"),
        (SIGNATURES, offers(plugin("acme", "d2", "2.0")), "plugin 'acme' (1.0 → 2.0): its files differ"),
        (SIGNATURES, offers(plugin("acme", "d2")), "plugin 'acme' (1.0): its files differ"),
        (SIGNATURES, offers(tactic=make_tactic("Else")), "tactic acme.good() is not offered here"),
        (SIGNATURES, offers(tactic=make_tactic("Good", version=4)), "has version 4, locked is 3"),
    ],
)
def test_each_difference_is_named(signatures: Any, candidates: Any, line: str) -> None:
    differences = lock().check(signatures, candidates)
    assert [d for d in differences if line in d], differences
    with pytest.raises(LockMismatchError) as caught:
        lock().require(signatures, candidates)
    assert all(d in str(caught.value) for d in differences)
    assert "without --locked" in str(caught.value)


def test_a_signature_that_differs_in_what_its_text_leaves_out() -> None:
    changed = OpSignature(CALL.op, 1, (("alpha", 1.0),), CALL.inputs, CALL.outputs, CALL.constants)
    assert str(changed) == str(CALL)
    (line, *_) = lock().check(SIGNATURES | {"a": changed}, offers())
    assert "attributes, constants or fused body changed" in line


def test_a_choice_holds_for_its_signature_only() -> None:
    assert lock().choice("a", CALL) == "acme.good()"
    assert lock().choice("a", OTHER) is None
    assert lock().choice("z", CALL) is None
