"""Layouts: which nodes of a network work on tensors with the channels innermost, chosen by measured times."""
