"""Attacks on what a run publishes, each with its chance level, its controls and what differential privacy allows."""
