"""Rows on demand from a released generator: needs the release alone, and no data."""
