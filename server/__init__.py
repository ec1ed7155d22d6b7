"""Runs at the coordinator: rounds, sums, targets, generator averaging and publication. Sees no real row."""
