"""What a data steward types, by subject."""
