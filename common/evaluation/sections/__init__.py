"""The sections of the page of a run: what each shows, and in which words."""
