"""A company's policy for every build on a machine: what may be chosen, and a record of what was.

- Only tactics whose repeated runs are equal bit for bit.
- None of the libraries that the policy file denies, or none but those that it allows.
- Each choice is appended to the audit file as a line of JSON.

The policy file is named by ``TACTICIAN_POLICY``; without it nothing is denied and nothing written::

    deny = ["onnxruntime"]
    audit = "/var/log/tactician.jsonl"

Where the policy would leave a call with no tactic it stands back, and says so in the audit file: an engine that can't be
built helps nobody.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tactician import Decision, OpSignature, Tactic, hookimpl
from tactician.errors import SelectionError

TACTICIAN_API = (1, 1)

VARIABLE = "TACTICIAN_POLICY"


@dataclass(frozen=True)
class Policy:
    """What the policy file says.

    Parameters
    ----------
    deny, allow
        Libraries, as in the column "library" of ``tactician tactics``; ``allow`` None: all that are not denied.
        Kernels with no library behind them are always allowed.
    audit
        File that choices are appended to.
    """

    deny: frozenset[str] = frozenset()
    allow: frozenset[str] | None = None
    audit: Path | None = None

    def permits(self, signature: OpSignature, tactic: Tactic) -> bool:
        """Return whether ``tactic`` may be used for ``signature``."""
        library = tactic.library
        named = not library or (library not in self.deny and (self.allow is None or library in self.allow))
        return named and "nondeterministic" not in tactic.numerics(signature)


def read_policy() -> Policy:
    """Return what the file that ``TACTICIAN_POLICY`` names says.

    Raises
    ------
    SelectionError
        If it can't be read, or says something else than a policy does. It ends the build: a policy that is misread
        would be none.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return Policy()
    try:
        with open(path, "rb") as file:
            said = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SelectionError(f"{VARIABLE}: can't read the policy '{path}': {error}") from error
    unknown = said.keys() - {"deny", "allow", "audit"}
    if unknown:
        raise SelectionError(
            f"{VARIABLE}: '{path}' says {', '.join(sorted(unknown))}; it may say deny, allow, audit"
        )
    for key in ("deny", "allow"):
        names = said.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SelectionError(f"{VARIABLE}: {key} in '{path}' is {names!r}; write a list of libraries")
    allow = frozenset(said["allow"]) if "allow" in said else None
    audit = Path(said["audit"]) if "audit" in said else None
    return Policy(frozenset(said.get("deny", ())), allow, audit)


@hookimpl
def filter_tactics(
    signature: OpSignature, candidates: list[str], tactics: Mapping[str, Tactic]
) -> list[str] | None:
    """Leave out what the policy forbids, unless nothing else runs the call."""
    policy = read_policy()
    return [name for name in candidates if policy.permits(signature, tactics[name])] or None


@hookimpl
def report_choices(choices: list[Decision]) -> None:
    """Append what was chosen, and out of what, to the audit file."""
    policy = read_policy()
    if policy.audit is None:
        return
    with policy.audit.open("ab") as file:
        for choice in choices:
            file.write(msgspec.json.encode(entry(choice, policy)) + b"\n")


def entry(choice: Decision, policy: Policy) -> dict[str, object]:
    """Return the line of one choice, as JSON-ready values."""
    filtered = [c.tactic for c in choice.candidates if c.outcome == "filtered" and "'policy'" in c.reason]
    return {
        "nodes": choice.nodes,
        "call": choice.signature,
        "target": choice.target,
        "tactic": choice.chosen,
        "chosen_by": choice.chosen_by,
        "forbidden": filtered,
        "numerics": choice.winner.numerics,
        "deny": sorted(policy.deny),
    }
