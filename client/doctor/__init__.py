"""What a steward can find out before a site runs: each check tells what is wrong and how to mend it."""
