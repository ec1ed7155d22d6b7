"""Embedded, seeded data for a first run with nothing else on the machine."""
