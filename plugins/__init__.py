"""The contract with other packages, and their loader."""
