"""Operators that no tactic of the main target accepts, written with others for which it has tactics."""
