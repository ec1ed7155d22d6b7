"""What leaves a run: synthetic rows, the generator, the certificate. Made from the generator and releases alone."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.certificate import Signer, SiteRecord, make_certificate
from common.data.windows import WindowedTable
from common.evaluation.gates import Gate
from common.study import Study
from common.synthesis.card import CARD, CROISSANT, as_json, make_card, make_croissant
from common.synthesis.release import OneWay, Release
from common.synthesis.rows import tables_of
from common.synthesis.tables import as_csv
from server.checkpoints import write_file, write_json
from server.rounds import Trained


def release_of(trained: Trained, study: Study) -> Release:
    """What a run may publish of its generator."""
    bins = trained.bins
    tables = [bins.counts_of(at) for at in range(bins.columns)]
    one_way = OneWay(tuple(counts for counts, _ in tables), tuple(np.sqrt(variance) for _, variance in tables))
    return Release(study, trained.generator, bins.binnings, bins.moves, trained.targets.label_counts, one_way)


def rows_to_publish(trained: Trained, study: Study) -> int:
    """The study's number of rows, or the noised count of units."""
    return study.release.rows or max(1, round(float(trained.targets.label_counts.sum())))


def publish(
    trained: Trained, study: Study, units: WindowedTable, folder: Path, *, gates: Sequence[Gate], signer: Signer
) -> dict[str, Any]:
    """Write the synthetic tables, generator/, the data card and certificate.json; returns the certificate.

    Args:
        trained: the end of a run.
        study: of the run.
        units: as `draw_units` made them.
        folder: where to.
        gates: that were passed. The certificate shows those whose figures may be public.
        signer: of the certificate.

    Raises:
        LedgerError: no certificate can be made; nothing was written.
        OutputError: the folder cannot be written.
    """
    release, state = release_of(trained, study), trained.state
    public = [gate.as_dict() for gate in gates if gate.visibility == "public"]
    tables = {
        name: as_csv(table, study.columns | study.channels).encode() for name, table in tables_of(units, study).items()
    }
    files = {
        **tables,
        **release.files(),
        CARD: make_card(release, rows=len(units.records), gates=public).encode(),
        CROISSANT: as_json(make_croissant(release, tables)),
    }
    certificate = make_certificate(
        study,
        run=state.run,
        sites={
            site: SiteRecord(
                state.events[site], account.spending, account.key, account.ledger_head, account.attestations
            )
            for site, account in state.accounts.items()
        },
        signer=signer,
        files={name: hashlib.sha256(body).hexdigest() for name, body in files.items()},
        gates=public,
    )
    for name, body in files.items():
        write_file(folder / name, body)
    write_json(folder / "certificate.json", certificate)
    return certificate
