"""Runs at a site: the only place where real rows are opened."""
