"""`privshare-client --site hospital_a`: what a data steward does at a site. Thin: parse, call one function, print."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.enrolment import ENROLMENT, enrol, enrolment_path, open_kit
from client.enrolment import join as take_up
from client.enrolment import rotate as make_next_keys
from client.keys import identity, make_identity
from client.policy import (
    PolicyFile,
    SitePolicy,
    SiteSettings,
    load_site_settings,
    read_policy,
    read_source_settings,
    sign_policy,
    today_utc,
)
from client.replies import Replies
from common.errors import ExitCode, LedgerError, PolicyError, PrivShareError
from common.privacy.ledger import Book, read_ledger
from common.study import Study, load_study
from common.wire.membership import WARN_DAYS, fingerprints, spaced

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    help="Run a site, until Ctrl-C. With a command: what it allows, what it has spent, and how it joins.",
)
ledger_app = typer.Typer(no_args_is_help=True, help="The record of what was spent.")
app.add_typer(ledger_app, name="ledger")
_err = Console(stderr=True, emoji=False)


@app.callback()
def choose(
    context: typer.Context,
    *,
    site: Annotated[str, typer.Option(help="Name of the site; its folder holds site.yaml.")],
    sites: Annotated[
        Path, typer.Option(envvar="PRIVSHARE_SITES", help="Folder that holds a folder a site.", show_default=True)
    ] = Path("sites"),
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Compute threads.")] = 2,
    test_noise_seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**32 - 1,
            help="TEST MODE: noise from a seed, to compare transports. Voids the guarantee; the certificate says so.",
        ),
    ] = None,
) -> None:
    """Run a site, until Ctrl-C. With a command: what it allows, what it has spent, and how it joins."""
    context.obj = _Place(site, sites / site)
    if context.invoked_subcommand is None:
        _run(_settings(context), context.obj, device=device, threads=threads, noise_seed=test_noise_seed)


def _run(settings: SiteSettings, place: "_Place", *, device: str, threads: int, noise_seed: int | None) -> None:
    # torch and Flower take seconds to import, and no other command needs them.
    from client.running import run_site  # noqa: PLC0415

    try:
        run_site(settings, place.folder / "site.yaml", device=device, threads=threads, noise_seed=noise_seed, now=_now)
    except PrivShareError as error:
        _fail(error)


@app.command()
def status(
    context: typer.Context, *, json_output: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False
) -> None:
    """Whether this site is running and connected. Exit code 0 if it is."""
    from client.health import SERVING, ask  # noqa: PLC0415 (grpc, which no other command needs)

    settings = _settings(context)
    try:
        if settings.health is None:
            raise PolicyError(
                f"{settings.site}: site.yaml gives no `health`, host:port on loopback; set it and restart"
            )
        found = ask(settings.health)
    except PrivShareError as error:
        _fail(error)
    named = {name or "site": state for name, state in found.items()}
    if json_output:
        typer.echo(json.dumps(named))
    else:
        _show(named, title=settings.site)
    raise typer.Exit(0 if found[""] == SERVING else int(ExitCode.UNREACHABLE))


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
    place = _place(context)
    try:
        opened = open_kit(kit, site=place.site)
        enrolment = enrol(opened, place.folder, source=_source(table, series, source), now=_now())
        facts = fingerprints(opened.kit, opened.files["ca.crt"])
    except PrivShareError as error:
        _fail(error)
    _show({**facts, "this site's key": spaced(enrolment.identity)}, title=f"{opened.kit.federation}: {place.site}")
    _say(
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
    settings = _settings(context)
    try:
        joined = take_up(settings, admission, now=_now())
    except PrivShareError as error:
        _fail(error)
    peers = {name: spaced(key) for name, key in joined.peers.items()}
    if peers:
        _show(peers, title="keys of the other sites")
    _say(f"joined with admission {joined.number}: {len(peers)} other sites")
    _say(f"the certificate is in force for {joined.days} days more")
    if joined.days < WARN_DAYS:
        _say("warning: that is soon: privshare-client rotate")
    if joined.keys_changed:
        _say("the new keys are in place: restart the site")
    if joined.policy_changed:
        _say(f"{settings.policy}: peers were changed; compare the keys above, then: privshare-client approve")


@app.command()
def rotate(context: typer.Context) -> None:
    """Make new keys for the connection, and an enrolment for them under this site's unchanged identity.

    The keys in use stay until `join` takes up the admission for the new ones.
    """
    settings = _settings(context)
    try:
        enrolment = make_next_keys(settings, now=_now())
    except PrivShareError as error:
        _fail(error)
    _show({"this site's key, as before": spaced(enrolment.identity)}, title=settings.site)
    _say(f"send {enrolment_path(settings)} to the coordinator; with the admission: privshare-client join")


@app.command()
def approve(
    context: typer.Context, *, yes: Annotated[bool, typer.Option("--yes", help="Do not ask; sign.")] = False
) -> None:
    """Show what the policy and its study allow, and sign the policy."""
    settings = _settings(context)
    try:
        study, policy = load_study(settings.study), read_policy(settings.policy)
        bound = SitePolicy(settings, policy, study, today=today_utc)
    except PrivShareError as error:
        _fail(error)
    terms = {**_terms(study, policy), "noise_at_least": _floor(policy), "bound": f"{bound.bound:.6g}"}
    _show({name.replace("_", " "): term for name, term in terms.items()}, title=study.name)
    if not yes and not typer.confirm("Sign this?", err=True):
        raise typer.Exit(1)
    try:
        key = make_identity(settings.state)
        sign_policy(settings.policy, key)
    except OSError as error:
        _fail(PolicyError(f"{settings.policy}: cannot be signed ({error.strerror})"))
    except PrivShareError as error:
        _fail(error)
    typer.echo(f"signed {settings.policy} as {key.public}")


@ledger_app.command()
def show(
    context: typer.Context, *, json_output: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False
) -> None:
    """Every release that was paid for, and what is left of each budget."""
    settings = _settings(context)
    try:
        book = read_ledger(settings.ledger)
    except PrivShareError as error:
        _fail(error)
    if json_output:
        typer.echo(json.dumps(_as_dict(book), allow_nan=False))
        return
    table = Table(title=escape(f"{book.asset['site']}: {book.asset['asset']}"))
    for name in ("study", "request", "account", "noise / change", "cells", "spend", "sealed"):
        table.add_column(name)
    for study, charges in book.charges.items():
        for charge in charges.values():
            event = charge.event
            table.add_row(
                study[:12],
                escape(charge.request),
                event.account,
                f"{event.noise_stddev / event.squared_sensitivity**0.5:.4g}",
                f"{event.cells:,}",
                f"{book.spend_of(event):.4g}",
                "yes" if charge.request in book.seals[study] else "no",
            )
    console = Console()
    console.print(table)
    for line in _lines(book):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@ledger_app.command()
def verify(context: typer.Context) -> None:
    """Check every entry: chain, signatures, budgets, seals, and that every sealed reply is there unchanged."""
    settings = _settings(context)
    try:
        book = read_ledger(settings.ledger)
        key = identity(settings.state)
        if book.public != key.public:
            raise LedgerError(f"{settings.ledger}: was signed with another key than this site's")
        replies = Replies(settings.state)
        missing = sum(not replies.is_whole(*seal) for seal in _seals(book))
        if missing:
            raise LedgerError(f"{settings.state}: {missing} sealed replies are missing or were changed")
    except PrivShareError as error:
        _fail(error)
    sealed = sum(len(seals) for seals in book.seals.values())
    charged = sum(len(charges) for charges in book.charges.values())
    typer.echo(f"whole: {len(book.hashes)} entries, {charged} charges, {sealed} sealed replies")
    for line in _lines(book):
        typer.echo(line)
    typer.echo("that it is the newest ledger, no file can show: other sites confirm it when a run begins")


@dataclass(frozen=True)
class _Place:
    """Which site, and its folder; `init` makes what is in it."""

    site: str
    folder: Path


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


def _place(context: typer.Context) -> _Place:
    place = context.obj
    assert isinstance(place, _Place)
    return place


def _settings(context: typer.Context) -> SiteSettings:
    place = _place(context)
    path = place.folder / "site.yaml"
    try:
        settings = load_site_settings(path)
        if settings.site != place.site:
            raise PolicyError(f"{path}: is the file of another site")
    except PrivShareError as error:
        _fail(error)
    return settings


def _now() -> datetime:
    return datetime.now(UTC)


def _say(*lines: str) -> None:
    for line in lines:
        typer.echo(line)


def _terms(study: Study, policy: PolicyFile) -> dict[str, str]:
    privacy = study.privacy
    epsilon, delta = min(privacy.epsilon, policy.max_epsilon), min(privacy.delta, policy.max_delta)
    return {
        "purpose": study.purpose,
        "digest": study.digest(),
        "protects": f"each {study.unit.name}, by {study.unit.key or 'record'}: add or remove one",
        "this_study": f"at most epsilon {epsilon:g}, delta {delta:g}",
        "all_studies": f"at most epsilon {policy.total_epsilon:g}, delta {policy.total_delta:g}, for ever",
        "columns": ", ".join([*study.columns, *study.channels]),
        "until": str(policy.expires or "no end"),
        "shown": "this site's noised answers" if privacy.noise_trust == "local" else "sums over all sites, by masks",
        "confirmed_by": ", ".join(sorted(policy.peers)) or "nobody: a ledger that was restored is not noticed",
    }


def _floor(policy: PolicyFile) -> str:
    return f"{policy.least_noise:g} times what one unit changes" if policy.least_noise else "no least noise"


def _show(facts: dict[str, str], *, title: str) -> None:
    table = Table(title=escape(title), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a digest is read whole or not at all
    for name, value in facts.items():
        table.add_row(escape(name), escape(value))
    Console().print(table)


def _seals(book: Book) -> list[tuple[str, str, str]]:
    return [(study, request, digest) for study, seals in book.seals.items() for request, digest in seals.items()]


def _lines(book: Book) -> list[str]:
    lines = [
        f"study {study[:12]}: {float(book.worst(study)) / bound:.2%} of its budget is spent"
        for study, bound in book.bounds.items()
    ]
    spent = float(sum(map(book.worst, book.bounds)))
    return [*lines, f"all studies: {spent / book.asset['bound']:.2%} of what this data may ever pay is spent"]


def _as_dict(book: Book) -> dict[str, object]:
    return {
        **book.asset,
        "head": {"sequence": book.head.sequence, "hash": book.head.hash},
        "studies": {
            study: {
                "bound": bound,
                "spent": {account: float(book.spent[study, account]) for account in ("train", "holdout")},
                "charges": [
                    {
                        "request": charge.request,
                        "event": charge.event.as_dict(),
                        "spend": book.spend_of(charge.event),
                        "sealed": charge.request in book.seals[study],
                    }
                    for charge in book.charges[study].values()
                ],
            }
            for study, bound in book.bounds.items()
        },
    }


def _fail(error: PrivShareError) -> NoReturn:
    _err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(int(error.code)) from None
