"""Synthesizers that others wrote, beside privshare: they see all rows in one place, and spend the same epsilon."""
