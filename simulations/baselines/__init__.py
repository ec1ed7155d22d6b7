"""What the field would do instead, in the same harness. Some of it is not private: no real site can run it."""
