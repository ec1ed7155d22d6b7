"""What every party agrees on: studies, encodings, models, privacy mechanisms and messages."""
