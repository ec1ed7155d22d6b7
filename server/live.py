"""A run of a live federation: a folder that says what to do, a program that does it, and what came of it.

`privshare start` writes the folder and follows it; the program that Flower starts on the coordinator reads it. Whatever
ends the program, the next one goes on from the folder's last checkpoint.
"""

from pathlib import Path

from common.certificate import Signer
from common.errors import ExitCode, PrivShareError
from common.evaluation.gates import require
from common.models.devices import device_named
from common.study import load_study
from common.synthesis.rows import draw_units
from server.exchange import Credentials, Exchange
from server.gates import gates_of
from server.provision import coordinator_key, read_roster
from server.publish import publish, release_of, rows_to_publish
from server.rounds import Coordinator
from server.run_folder import Start, hold, read_outcome, write_outcome

_HELD = 120.0
"""Seconds to wait for the program before, which may not have noticed yet that it is over."""


def credentials_of(home: Path) -> Credentials:
    """Of a coordinator and the members that it admitted.

    Raises:
        MembershipError: its files cannot be used.
    """
    members = read_roster(home).admitted
    keys = {name: member.identity for name, member in members.items() if member.identity is not None}
    return Credentials(coordinator_key(home), keys)


def conduct(folder: Path, exchange: Exchange, credentials: Credentials, start: Start) -> None:
    """Run to the published table, or to the error that ends it; either is written down.

    Args:
        folder: of the run.
        exchange: reaches the sites.
        credentials: of the coordinator and its members.
        start: what the folder says.
    """
    with hold(folder, patience=_HELD):
        if read_outcome(folder) is not None:
            return
        try:
            _conduct(folder, exchange, credentials, start)
        except PrivShareError as error:
            write_outcome(folder, error.code, str(error))
        else:
            write_outcome(folder, ExitCode.OK, "published")


def _conduct(folder: Path, exchange: Exchange, credentials: Credentials, start: Start) -> None:
    study, device = load_study(folder / "study.lock.yaml"), device_named(start.device)
    coordinator = Coordinator(
        study,
        folder=folder,
        run=start.run,
        seed=start.seed,
        credentials=credentials,
        device=device,
        on_step=lambda _: None,  # whoever follows reads rounds.jsonl
    )
    trained = coordinator.run(exchange)
    gates = gates_of(study, trained.state)
    require(gates)
    units = draw_units(release_of(trained, study), rows=rows_to_publish(trained, study), seed=start.seed, device=device)
    publish(trained, study, units, folder, gates=gates, signer=Signer(credentials.key, "coordinator"))
