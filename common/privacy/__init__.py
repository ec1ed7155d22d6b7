"""Mechanism, noise, budget and ledger: what is released, and what it cost. Never sees a record's meaning."""
