"""Schema, encoding and units: from a table to bounded integer codes, and back. Never sees a budget."""
