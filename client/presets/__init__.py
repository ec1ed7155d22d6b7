"""How clinical databases of known layouts become a study's table and series."""
