"""What a log record may show, for tests of what a site lets out."""

import logging

# Numbers that the library gives every record: they hold any few digits by chance, and none of a site's.
_GIVEN = {"created", "msecs", "relativeCreated", "thread", "process", "lineno"}


def whole(record: logging.LogRecord) -> str:
    """A record with all that hangs on it, whatever a formatter makes of it, but for clocks and numbers of processes."""
    hanging = {name: value for name, value in vars(record).items() if name not in _GIVEN}
    return logging.Formatter().format(record) + repr(hanging)
