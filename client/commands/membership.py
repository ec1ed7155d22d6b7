"""How a site joins: `init`, `join`, `rotate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from client.commands.place import now, place_of, say, settings_of
from client.enrolment import ENROLMENT, enrol, enrolment_path, open_kit
from client.enrolment import join as take_up
from client.enrolment import rotate as make_next_keys
from client.policy import read_source_settings
from common.commands import Commands, fail, show
from common.errors import ExitCode, PolicyError, PrivShareError
from common.wire.membership import WARN_DAYS, fingerprints, spaced

app = Commands()


@app.command()
def init(
    context: typer.Context,
    *,
    kit: Annotated[Path, typer.Option(help="NAME.zip, as it came from the coordinator.")],
    table: Annotated[
        Path | None, typer.Option(help="File of this site's records, CSV or .parquet. It is not read yet.")
    ] = None,
    series: Annotated[Path | None, typer.Option(help="The long table, for a study with windows.")] = None,
    source: Annotated[
        Path | None, typer.Option(help="Instead of --table: a YAML file with `source` of site.yaml, for a database.")
    ] = None,
) -> None:
    """Set a site up from the coordinator's kit: its folder, a draft of its policy, its own keys, its enrolment.

    The keys are made here and stay here. Nothing that is there already is overwritten.
    """
    place = place_of(context)
    try:
        opened = open_kit(kit, site=place.site)
        enrolment = enrol(opened, place.folder, source=_source(table, series, source), now=now())
        facts = fingerprints(opened.kit, opened.files["ca.crt"])
    except PrivShareError as error:
        fail(error)
    show({**facts, "this site's key": spaced(enrolment.identity)}, title=f"{opened.kit.federation}: {place.site}")
    say(
        "1. read these over the telephone: the first three to compare them with the coordinator's, the last to be "
        "compared there. If one differs, delete the folder: the kit was changed on the way",
        f"2. read study.yaml and policy.yaml in {place.folder}; narrow the policy where it should be",
        f"3. send {place.folder / ENROLMENT} to the coordinator: it holds public keys alone",
        "4. with the admission that comes back: privshare-client join, then privshare-client approve",
    )


@app.command()
def join(
    context: typer.Context, admission: Annotated[Path, typer.Argument(help="NAME.json, from the coordinator.")]
) -> None:
    """Take up an admission: this site's certificate, and the keys of its peers.

    It must be signed by the coordinator that the policy names, be for this site's keys, and be no older than the last
    one. Where the peers changed, the policy changes with them and must be approved anew.
    """
    settings = settings_of(context)
    try:
        joined = take_up(settings, admission, now=now())
    except PrivShareError as error:
        fail(error)
    peers = {name: spaced(key) for name, key in joined.peers.items()}
    if peers:
        show(peers, title="keys of the other sites")
    say(f"joined with admission {joined.number}: {len(peers)} other sites")
    say(f"the certificate is in force for {joined.days} days more")
    if joined.days < WARN_DAYS:
        say("warning: that is soon: privshare-client rotate")
    if joined.keys_changed:
        say("the new keys are in place: restart the site")
    if joined.policy_changed:
        say(f"{settings.policy}: peers were changed; compare the keys above, then: privshare-client approve")


@app.command()
def rotate(context: typer.Context) -> None:
    """Make new keys for the connection, and an enrolment for them under this site's unchanged identity.

    The keys in use stay until `join` takes up the admission for the new ones.
    """
    settings = settings_of(context)
    try:
        enrolment = make_next_keys(settings, now=now())
    except PrivShareError as error:
        fail(error)
    show({"this site's key, as before": spaced(enrolment.identity)}, title=settings.site)
    say(f"send {enrolment_path(settings)} to the coordinator; with the admission: privshare-client join")


def _source(table: Path | None, series: Path | None, file: Path | None) -> dict[str, Any]:
    """What site.yaml will say of where the records are.

    Raises:
        PrivShareError: not one of both ways, or the file is no such section.
    """
    if (table is None) == (file is None) or (file is not None and series is not None):
        raise PolicyError("--table or --source: expected one of both; --series goes with --table", ExitCode.USAGE)
    if file is not None:
        return read_source_settings(file)
    assert table is not None
    files = {"table": table, **({"series": series} if series is not None else {})}
    kind = "parquet" if table.suffix == ".parquet" else "csv"
    return {"type": kind, **{name: str(path.absolute()) for name, path in files.items()}}
