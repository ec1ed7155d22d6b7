"""A plain Flower application, to see what stock Flower does where privshare is disturbed."""
