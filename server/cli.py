"""`privshare`: what a coordinator does before a run, and with whom. Thin: parse, call one function, print."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.commands import Commands, fail, say_aside, show
from common.errors import ExitCode, OutputError, PrivShareError, StudyError
from common.study import load_study
from common.wire.membership import WARN_DAYS, Enrolment, fingerprints, spaced
from server.checkpoints import write_file
from server.drafts import draft_study
from server.plausibility import units_allowed
from server.provision import (
    LOCAL_PORT,
    Roster,
    check_admissible,
    days_of,
    read_enrolment,
    read_roster,
    renew_server,
    superexec_command,
    superlink_command,
    typed,
)
from server.provision import admit as issue
from server.provision import provision as make_home
from server.provision import revoke as take_back
from server.run_cli import app as runs

app = Commands(
    no_args_is_help=True,
    help="Plan a study that sites can join, and say who is in.",
)
app.add_typer(runs)
_Home = Annotated[Path, typer.Option(help="The coordinator's folder: its keys, and the record of members.")]


@app.command()
def init(
    *,
    from_csv: Annotated[Path, typer.Option(help="Table with a header line, one row a record.")],
    label: Annotated[str | None, typer.Option(help="Column to predict. Default: the last one with two values.")] = None,
    delimiter: Annotated[str, typer.Option(help="Between cells.")] = ",",
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("study.yaml"),
) -> None:
    """Draft a study file from a table, and mark what a human must replace by public knowledge."""
    try:
        if out.exists():
            raise OutputError(f"{out}: exists already; choose another --out")
        draft = draft_study(from_csv, label=label, delimiter=delimiter)
        write_file(out, draft.encode())
    except PrivShareError as error:
        fail(error)
    marked = draft.count("REPLACE: ")
    say_aside(
        f"wrote {out}: {marked} lines marked REPLACE were read off the rows. Replace them by public knowledge, delete "
        f"`draft: true`, then: privshare check {out}",
    )


@app.command()
def check(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    *,
    sites: Annotated[int, typer.Option(min=1, help="Number of sites.")] = 4,
    json_output: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Validate a study and say what noise its budget buys. Needs no data."""
    try:
        loaded = load_study(study)
        from server.forecast import plan_of  # noqa: PLC0415 (torch, for which a fault of the study does not wait)

        plan = plan_of(loaded, sites)
    except PrivShareError as error:
        fail(error)
    if json_output:
        typer.echo(json.dumps(plan, allow_nan=False))
        return
    facts = {name.replace("_", " "): f"{x:,.4g}" if isinstance(x, float) else str(x) for name, x in plan.items()}
    show(facts, title=f"{loaded.name}: valid")


@app.command()
def budget(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    *,
    epsilon: Annotated[list[float] | None, typer.Option(help="A budget; repeat it. Default: the study's.")] = None,
    units: Annotated[list[int] | None, typer.Option(min=1, help="Units of all sites together; repeat it.")] = None,
    sites: Annotated[list[int] | None, typer.Option(min=1, help="Sites that have them; repeat it.")] = None,
    rounds: Annotated[
        list[int] | None, typer.Option(help="Measurements by the discriminators; repeat it. Default: the study's.")
    ] = None,
    cell: Annotated[float, typer.Option(help="Share of all units in the cell whose error is shown.")] = 0.01,
    json_output: Annotated[bool, typer.Option("--json", help="As JSON lines.")] = False,
) -> None:
    """What if: the noise of each release for other budgets, units, sites and measurements. Needs no data.

    Units are what you expect; a number that was counted in real rows does not belong on a command line.
    """
    from server.forecast import what_if  # noqa: PLC0415 (torch, which most other commands do not need)

    try:
        if not 0 < cell <= 1:
            raise StudyError(f"cell={cell}: expected above 0 and at most 1", ExitCode.USAGE)
        loaded = load_study(study)
        found = list(
            what_if(
                loaded,
                epsilons=epsilon or [loaded.privacy.epsilon],
                units=units or [1_000, 10_000, 100_000],
                sites=sites or [4],
                rounds=rounds or [loaded.noise.rounds],
                cell=cell,
            )
        )
    except PrivShareError as error:
        fail(error)
    if json_output:
        for row in found:
            typer.echo(json.dumps(row, allow_nan=False))
        return
    console = Console()
    # A table that is cut says nothing; a terminal that is narrower breaks its lines.
    console.width = max(console.width, 100)
    console.print(_what_if_table(loaded.name, found, cell=cell))


@app.command()
def provision(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    *,
    home: _Home,
    site: Annotated[list[str], typer.Option(help="Name of a site to invite; once a site.")],
    address: Annotated[str, typer.Option(help="host:port at which sites reach the coordinator.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the kits.")] = Path("kits"),
) -> None:
    """Make the coordinator's keys and CA, and a kit to send to each site.

    A kit holds nothing secret. Whether it arrived unchanged, people find out by reading the fingerprints to each other
    over the telephone. Nothing that is there already is overwritten.
    """
    try:
        kits = make_home(study, home=home, kits=out, sites=site, address=address, now=_now())
        facts = fingerprints(next(iter(kits.values())), (home / "ca.crt").read_bytes())
    except PrivShareError as error:
        fail(error)
    show(facts, title="to read over the telephone")
    for name in kits:
        typer.echo(f"send {out / name}.zip to {name}")
    typer.echo(f"units that a site may state: {units_allowed(load_study(study))}")
    typer.echo(f"back up {home}, apart from this machine: ca.key and coordinator.pem cannot be made again")
    typer.echo("when all have been admitted, start these, each of which goes on until it is stopped:")
    typer.echo(typed(superlink_command(home)))
    typer.echo(typed(superexec_command(home)))
    listen = f"0.0.0.0:{address.rpartition(':')[2]}"
    typer.echo(f"mkdir -p proxy && privshare proxy --home {home} --run proxy --listen {listen} > proxy/nginx.conf")
    typer.echo('nginx -e stderr -c "$PWD/proxy/nginx.conf"')
    typer.echo(f"then: privshare start {study} --home {home}")


@app.command()
def admit(
    enrolments: Annotated[
        list[Path] | None, typer.Argument(help="enrolment.json of sites. Without one, admissions are written again.")
    ] = None,
    *,
    home: _Home,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let another identity, or a site that was revoked, take the place.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: the keys were compared.")] = False,
) -> None:
    """Check enrolments, issue certificates, and write an admission for every member.

    Compare each key with what its site reads to you. An enrolment under a member's own identity is a rotation: the new
    certificate takes the place of the old one, which is taken back.
    """
    try:
        roster, found = read_roster(home), [read_enrolment(path) for path in enrolments or []]
        for enrolment in found:
            check_admissible(roster, enrolment, replace=replace)
    except PrivShareError as error:
        fail(error)
    if found:
        show({one.site: f"{spaced(one.identity)}{_is_new(roster, one)}" for one in found}, title="keys of these sites")
        if not yes and not typer.confirm("Did each site read the same?", err=True):
            raise typer.Exit(1)
    try:
        roster = issue(home, found, now=_now(), replace=replace)
    except PrivShareError as error:
        fail(error)
    _say_what_to_send(home, roster)


@app.command()
def revoke(site: Annotated[str, typer.Argument(help="Its name.")], *, home: _Home) -> None:
    """Take a site's certificate back, and write admissions without it for the others."""
    try:
        roster = take_back(home, site, now=_now())
    except PrivShareError as error:
        fail(error)
    typer.echo(f"revoked {site}")
    _say_what_to_send(home, roster)


@app.command()
def members(
    *, home: _Home, json_output: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False
) -> None:
    """Who was invited, who is in, and how long each certificate is in force."""
    try:
        roster, days = read_roster(home), days_of(home, now=_now())
    except PrivShareError as error:
        fail(error)
    if json_output:
        typer.echo(json.dumps(_roster_as_dict(roster, days)))
    else:
        table = Table("site", "status", "days left", title=escape(f"{roster.federation}: admission {roster.number}"))
        table.add_column("key", overflow="fold")
        for name, member in sorted(roster.members.items()):
            table.add_row(name, member.status, str(days.get(name, "")), spaced(member.identity or ""))
        Console().print(table)
    for name, left in days.items():
        if left < WARN_DAYS:
            who = "privshare renew" if name == "(server)" else f"privshare-client --site {name} rotate"
            say_aside(f"warning: {name}: the certificate {_how_long(left)}: {who}")


@app.command()
def start(  # noqa: PLR0913 (one parameter an option)
    study: Annotated[Path, typer.Argument(help="Study file, as it was provisioned.")],
    *,
    home: _Home,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: HOME/runs/STUDY.")] = None,
    port: Annotated[int, typer.Option(help="Of flower-superlink, on loopback.")] = LOCAL_PORT,
    name: Annotated[str | None, typer.Option(help="Of the run, for ever. Default: the study's and the time.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of models; never of privacy noise.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    patience: Annotated[float, typer.Option(min=1, help="Seconds to wait for sites to connect.")] = 600.0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for their answers to a question.")] = 1800.0,
    json_output: Annotated[bool, typer.Option("--json", help="Steps as JSON lines on stdout.")] = False,
) -> None:
    """Run a study over the sites that joined, to the published table; started again, it goes on where it was.

    `privshare pause`, `resume` and `stop` steer it, `status` and `dashboard` show it.

    flower-superlink, flower-superexec and the proxy must be running. What this command, or the program that it starts,
    is ended by loses nothing.
    """
    # Flower and torch take seconds to import, and most other commands need neither.
    from server.launch import SuperLink, follow, prepare  # noqa: PLC0415
    from server.live import credentials_of  # noqa: PLC0415
    from server.run_folder import read_outcome  # noqa: PLC0415

    try:
        loaded = load_study(study)
        folder = out or home / "runs" / loaded.name
        run = name or f"{loaded.name}-{_now().strftime('%Y%m%d-%H%M%S')}"
        prepare(study, home, folder, run=run, seed=seed, device=device, patience=patience, timeout=timeout)
        credentials_of(home)  # what the program will need: said here in one line, where it would end it without a word
        superlink = SuperLink(port, home / "ca.crt")
        roster = read_roster(home)
        superlink.register(roster)
        for step in follow(superlink, folder, roster):
            if json_output:
                typer.echo(json.dumps(step, allow_nan=False))
            else:
                say_aside(_line_of(step))
    except PrivShareError as error:
        fail(error)
    except KeyboardInterrupt:
        say_aside(f"the run goes on without this; follow it again with the same command, or: privshare stop {folder}")
        raise typer.Exit(130) from None
    outcome = read_outcome(folder)
    assert outcome is not None  # follow returns when there is one
    if outcome.code != ExitCode.OK:
        fail(PrivShareError(outcome.message, ExitCode(outcome.code)))
    typer.echo(f"published {folder / 'synthetic.csv'}, {folder / 'certificate.json'}")


@app.command()
def proxy(
    *,
    home: _Home,
    run: Annotated[Path, typer.Option(help="Folder that the proxy may write.")],
    listen: Annotated[str, typer.Option(help="address:port for sites.")] = "0.0.0.0:8443",
    port: Annotated[int, typer.Option(help="Of flower-superlink, on loopback.")] = LOCAL_PORT,
) -> None:
    """Print the configuration of the proxy that sites reach: nginx -e stderr -c FILE."""
    from server.launch import PROXY, proxy_config  # noqa: PLC0415 (Flower takes a second to import)

    try:
        typer.echo(proxy_config(PROXY, home, listen=listen, upstream=f"127.0.0.1:{port}", run=run))
    except PrivShareError as error:
        fail(error)


def _what_if_table(name: str, found: list[dict[str, Any]], *, cell: float) -> Table:
    """Of noise; what is the same in all rows stands above them."""
    formats = {"epsilon": "{:g}", "units": "{:,}", "sites": "{}", "rounds": "{}"}
    varied = [key for key in formats if len({row[key] for row in found}) > 1]
    same = ", ".join(f"{key} {formats[key].format(found[0][key])}" for key in formats if key not in varied)
    table = Table(
        title=escape(f"{name}: noise of one count{', ' if same else ''}{same}"),
        caption=f"error: of a cell that holds {cell:.3g} of all units; first, last: of that measurement alone",
    )
    for heading in (*varied, "release", "noise", "of units", "error", "first", "last"):
        table.add_column(heading, justify="left" if heading == "release" else "right", no_wrap=True)
    for row in found:
        errors = (row[key] for key in ("relative_error", "first_relative_error", "last_relative_error"))
        table.add_row(
            *(formats[key].format(row[key]) for key in varied),
            row["release"].replace("_", " "),
            f"{row['noise']:,.1f}",
            f"{row['share']:.2%}",
            *(f"{error:.1%}" for error in errors),
        )
    return table


def _line_of(step: dict[str, object]) -> str:
    """A step as people read it."""
    notes = {name: step[name] for name in ("stage", "round", "loss", "sites", "budget_used") if name in step}
    shown = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in notes.items())
    return "  ".join([f"{step['step']:<14}", *shown])


@app.command()
def renew(*, home: _Home) -> None:
    """Issue the coordinator's own certificate anew, for the same key and names; sites notice nothing."""
    try:
        certificate = renew_server(home, now=_now())
    except PrivShareError as error:
        fail(error)
    typer.echo(f"{home / 'server.crt'}: in force until {certificate.not_valid_after_utc.date()}; restart and reload")


def _roster_as_dict(roster: Roster, days: dict[str, int]) -> dict[str, object]:
    return {
        "federation": roster.federation,
        "number": roster.number,
        "server_days": days["(server)"],
        "members": {
            name: {
                "status": member.status,
                "key": member.identity,
                "certificate": member.fingerprint,
                "days": days.get(name),
            }
            for name, member in sorted(roster.members.items())
        },
    }


def _is_new(roster: Roster, enrolment: Enrolment) -> str:
    before = roster.members[enrolment.site].identity
    if before is None:
        return ""
    return " (a rotation: the identity is unchanged)" if before == enrolment.identity else " (ANOTHER IDENTITY)"


def _how_long(days: int) -> str:
    return f"has {days} days left" if days >= 0 else "has expired"


def _say_what_to_send(home: Path, roster: Roster) -> None:
    typer.echo(f"admission {roster.number}: reload the proxy, which reads {home / 'crl.pem'}; then send")
    for name in roster.admitted:
        typer.echo(f"  {home / 'admissions' / name}.json to {name}")


def _now() -> datetime:
    return datetime.now(UTC)
