"""What the study asks of the data. Counts of violations are of real rows: they stay on the steward's terminal."""

import resource
import sys
from typing import Final

from client.doctor.checkup import Case, Check, Doubt, FaultError
from client.policy import MAX_CELLS
from client.sources import PostgresSettings
from common.errors import ExitCode, PrivShareError, SchemaError, StudyError
from common.models.releases import one_way_layout

_TENTH: Final = 0.1
_NUMBER_BYTES: Final = 8
_COPIES: Final = 4
"""Of the numbers of a release: the counts, the noise, their sum, and the message."""


def _source(case: Case) -> str:
    try:
        case.data.check_source()
    except PrivShareError as error:
        mend = _SOURCE_MENDS.get(error.code) if isinstance(case.settings.source, PostgresSettings) else None
        if mend is None:
            raise
        raise FaultError(str(error), error.code, mend=mend) from None
    preset = case.settings.source.preset
    return f"{case.settings.source.type}: can be read" + (f", preset {preset}" if preset else "")


def _columns(case: Case) -> str:
    preset = case.settings.source.preset
    if preset is not None:
        return _columns_of(preset, case)
    if wrong := case.data.columns():
        is_missing = any(": missing " in one for one in wrong)
        raise SchemaError("; ".join(wrong), ExitCode.COLUMN_MISSING if is_missing else ExitCode.COLUMN_UNKNOWN)
    return "those of the study, and those that it ignores"


def _columns_of(preset: str, case: Case) -> str:
    mend = "ask for a study of what presets make (docs/mimic.md); or give a table of your own"
    try:
        wrong = case.data.columns()
    except StudyError as error:
        raise FaultError(str(error), error.code, mend=mend) from None
    if wrong:
        said = f"{'; '.join(wrong)}: the preset {preset} does not make it"
        raise FaultError(said, ExitCode.COLUMN_MISSING, mend=mend)
    return f"the preset {preset} makes them"


def _cells(case: Case) -> str:
    if found := case.data.violations():
        raise SchemaError("; ".join(map(str, found)), next(iter(found[0].cells)))
    return "every cell is allowed"


def _records(case: Case) -> str:
    study, surplus = case.study, case.data.units_with_surplus()
    most = study.unit.max_records
    if surplus and (study.unit.surplus != "drop" or study.windows is not None):
        raise SchemaError(f"{surplus:,} units have more than {most} records (unit.max_records)", ExitCode.UNIT_REPEATED)
    return f"no unit has more than {most}" if not surplus else f"{surplus:,} units lose records beyond {most}"


def _windows(case: Case) -> str:
    if case.study.windows is None:
        return "the study has none"
    case.data.check_windows()
    try:
        case.data.check_filled()
    except SchemaError as error:
        # To refuse a request would tell whether one unit more or less has been there.
        mend = "correct the long table; where other sites have what is missing here, this one can take part as it is"
        raise FaultError(str(error), error.code, mend=mend) from None
    return f"one of {case.study.windows.length} steps a unit"


def _units(case: Case) -> str:
    study, units = case.study, case.data.units()
    layout = one_way_layout(study)
    spend = case.bound.allowed_spend("one_way", study.privacy.one_way_share)
    stddev = study.accountant.noise_stddev(squared_sensitivity=layout.n_tables, spend=spend, sampling=1.0)
    trained = units * (1 - study.privacy.holdout)
    said = f"{units:,} units; noise of a one-way count: {stddev:,.3g}"
    if not units:
        raise SchemaError(f"{said}: there is nobody in the table", ExitCode.TOO_FEW_UNITS)
    if 2 * stddev > _TENTH * trained:
        raise Doubt(f"{said}: what one in ten has cannot be told from what nobody has, at this site alone")
    return said


def _memory(case: Case) -> str:
    # What reading took is known: it was just done. Releases and the network come on top.
    from client.preview import preview  # noqa: PLC0415 (torch)

    case.data.units()
    found = preview(case.study, case.bound, site=case.settings.site, peers=len(case.policy.peers))
    largest = max(line.bytes for line in found.lines)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    needed = peak + _COPIES * min(largest, _NUMBER_BYTES * MAX_CELLS)
    free = case.around.memory()
    said = f"about {needed / 2**20:,.0f} MiB needed"
    if free is None:
        return f"{said}; this system does not say what is free"
    said = f"{said}, {free / 2**20:,.0f} MiB free beside this program"
    if free + peak < needed:
        raise FaultError(
            said, ExitCode.INTERNAL, mend="more memory, fewer columns, or a smaller model.max_bins in the study"
        )
    return said


_SOURCE_MENDS: Final = {
    ExitCode.SOURCE_REFUSED: "correct user and password in the URL; or have the database let that user in, and GRANT "
    "SELECT",
    ExitCode.SOURCE_UNREACHABLE: "start the database; or correct host, port and name of the database in the URL",
    ExitCode.SOURCE_TLS: "in the URL sslmode=verify-full and sslrootcert=FILE, the CA of the server's certificate, and "
    "the host that it names",
    ExitCode.TABLE_NOT_FOUND: "correct `table`, `series` or `schema` under `source` in site.yaml",
}
"""Of a server, whose URL is not in site.yaml."""

CHECKS: Final = (
    Check(
        "data source",
        _source,
        "correct `source` in site.yaml: file or address, credentials, and the right to read",
        ("study",),
    ),
    Check(
        "columns",
        _columns,
        "rename or add columns in the table or the query; ask for others to be listed under `ignore` of the study",
        ("data source",),
    ),
    Check(
        "cells",
        _cells,
        "correct the cells, or ask for the study's public bounds, categories or `missing` to be widened",
        ("columns",),
    ),
    Check(
        "records of a unit",
        _records,
        "correct the key, or ask for unit.max_records to be raised or unit.surplus: drop",
        ("columns",),
    ),
    Check(
        "windows",
        _windows,
        "correct the long table; docs/study.md explains what `windows` allows",
        ("cells", "records of a unit"),
    ),
    Check(
        "enough units",
        _units,
        "take part for the sum over all sites; or ask for fewer columns, or a larger epsilon",
        ("columns", "limits"),
    ),
    Check("memory", _memory, "more memory, or a smaller study", ("columns", "limits")),
)
