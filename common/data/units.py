"""Who is protected: units, their bounded contribution, and the hold-out split.

Every choice here depends on a site's secret key and on the unit's own records alone, so adding or removing one unit
never changes what becomes of another.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from common.errors import ExitCode, SchemaError

WINDOW_WEIGHT: Final = math.lcm(*range(1, 17))
"""Grid units in a window: its steps have equal shares of them, exactly up to 16 steps and to 1 in 2,800 up to 256."""


@dataclass(frozen=True)
class BoundedRecords:
    """The records that a study may use.

    rows: (records,) int64, positions in the table.
    units: (records,) int64, which unit each belongs to, numbered from 0.
    weights: (records,) int64, grid units; the weights of a unit sum to `unit_weight`.
    holdout: (records,) bool, whether the record's unit is held out; the same for all records of a unit.
    """

    rows: np.ndarray
    units: np.ndarray
    weights: np.ndarray
    holdout: np.ndarray
    unit_weight: int


def unit_weight(max_records: int) -> int:
    """Grid units in one unit: divisible by every number of records from 1 to `max_records`, so shares are exact."""
    return math.lcm(*range(1, max_records + 1))


def bound_units(
    table: pd.DataFrame,
    *,
    key: str | None,
    max_records: int,
    drop_surplus: bool,
    holdout: float,
    secret: bytes,
) -> BoundedRecords:
    """Keep at most `max_records` records a unit, share one unit's weight between them, and split units off.

    Args:
        table: parsed, with the unit key when there is one; without a key each record is a unit.
        key: the column that tells units apart.
        max_records: public bound on the records used of one unit.
        drop_surplus: whether a unit with more loses some, by keyed hash, or the table is refused.
        holdout: share of units to hold out, 0 to 0.5.
        secret: the site's key.

    Raises:
        SchemaError: a unit has more records than allowed and `drop_surplus` is off.
    """
    content = _hashes(pd.util.hash_pandas_object(table, index=False).to_numpy(), secret, b"record")
    if key is None:
        units = np.arange(len(table), dtype=np.int64)
        # The split looks at the record itself: a position would depend on the records before it.
        membership = content
    else:
        units, names = pd.factorize(table[key])
        membership = _hashes(np.asarray(names, dtype=object), secret, b"unit")[units]
    order = np.lexsort((content, units))
    sorted_units = units[order]
    starts = np.flatnonzero(np.r_[True, sorted_units[1:] != sorted_units[:-1]]) if len(order) else np.array([], int)
    counts = np.diff(np.r_[starts, len(order)])
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    if not drop_surplus:
        check_surplus(units, key=key, max_records=max_records)
    kept = order[rank < max_records]
    whole = unit_weight(max_records)
    used = np.minimum(np.repeat(counts, counts), max_records)[rank < max_records]
    held_out = membership[kept] < np.uint64(holdout * 2**64) if holdout > 0 else np.zeros(len(kept), dtype=bool)
    return BoundedRecords(
        rows=kept.astype(np.int64),
        units=units[kept].astype(np.int64),
        weights=(whole // used).astype(np.int64),
        holdout=np.asarray(held_out, dtype=bool),
        unit_weight=whole,
    )


def check_surplus(units: np.ndarray, *, key: str | None, max_records: int) -> None:
    """Refuse a table in which a unit has more records than the study says.

    Args:
        units: (records,) int64, the unit of each record.
        key: the column that tells units apart.
        max_records: the most that a unit may have.

    Raises:
        SchemaError: names the key and the rule.
    """
    if len(units) and int(np.bincount(units).max()) > max_records:
        raise SchemaError(
            f"{key}: a unit has more records than unit.max_records={max_records}; raise it, or set unit.surplus: drop",
            ExitCode.UNIT_REPEATED,
        )


def _hashes(values: np.ndarray, secret: bytes, purpose: bytes) -> np.ndarray:
    """Keyed 64-bit hash of each value, (values,) uint64."""
    digests = (
        hashlib.blake2b(str(value).encode(), key=secret, person=purpose, digest_size=8).digest() for value in values
    )
    return np.frombuffer(b"".join(digests), dtype="<u8")
