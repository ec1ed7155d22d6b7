"""How good synthetic data are, measured against real data that only a simulation may see."""
