"""What the names of steps in rounds.jsonl say."""

import re
from collections.abc import Mapping
from typing import Any, Final

_STEP: Final = re.compile(r"(?P<kind>.+?)(-(?P<stage>\d+))?(-\d+)?")


def kind_of(line: Mapping[str, Any]) -> str:
    """The mechanism of a line of rounds.jsonl.

    >>> kind_of({"step": "critic-2-10"}), kind_of({"step": "one_way"})
    ('critic', 'one_way')
    """
    found = _STEP.fullmatch(str(line["step"]))
    return found["kind"] if found else str(line["step"])


def stage_of(line: Mapping[str, Any]) -> int | None:
    """The stage of a line of rounds.jsonl; None where its name has none.

    >>> stage_of({"step": "critic-2-10"}), stage_of({"step": "one_way"})
    (2, None)
    """
    found = _STEP.fullmatch(str(line["step"]))
    return int(found["stage"]) if found and found["stage"] else None
