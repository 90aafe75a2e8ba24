"""Siblings: products of one tensor with several weights, merged into one product of a batch where that is faster."""
