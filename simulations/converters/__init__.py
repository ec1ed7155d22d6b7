"""Public data sets as they are distributed, made into the tables of the studies that come with the project."""
