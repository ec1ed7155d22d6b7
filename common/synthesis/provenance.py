"""Where rows are from: which release, which seed, what was asked for and what was delivered."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from common.errors import OutputError
from common.files import write_durably
from common.synthesis.release import FACTS, WEIGHTS
from common.synthesis.synthesizer import Sample

PROVENANCE_SCHEMA: Final = "privshare.provenance/1"


def describe(
    folder: Path, drawn: Sample, *, rows: int, where: Sequence[str], proportions: Sequence[str], match: bool = False
) -> dict[str, Any]:
    """Plain values for JSON.

    Args:
        folder: of the release.
        drawn: that was iterated to its end.
        rows: that there were.
        where: conditions as they were asked for.
        proportions: likewise.
        match: whether columns were to be distributed as the released tables say.
    """
    return {
        "schema": PROVENANCE_SCHEMA,
        "release": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS, FACTS)},
        "seed": drawn.seed,
        "rows": rows,
        "where": list(where),
        "proportions": list(proportions),
        "match": match,
        "delivered": [asdict(one) for one in drawn.delivered()],
        "effective_latents": None if math.isinf(drawn.effective) else drawn.effective,
        "chance": drawn.chance,
    }


def write_provenance(table: Path, facts: Mapping[str, Any]) -> None:
    """Write what `describe` says beside a table.

    Raises:
        OutputError: it cannot be written.
    """
    path = table.with_name(f"{table.name}.provenance.json")
    try:
        write_durably(path, (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
