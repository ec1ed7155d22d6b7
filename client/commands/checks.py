"""What a steward can find out: `doctor`, `rehearse`, `status`."""

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from client.commands.place import now, place_of, say, settings_of
from client.policy import SitePolicy, SiteSettings, read_policy, today_utc
from client.standing import standing_of
from common.commands import Commands, fail, say_aside, show
from common.errors import ExitCode, PrivShareError
from common.study import load_study

if TYPE_CHECKING:
    from client.audit import Audit
    from client.doctor.checkup import Result

app = Commands()
_Json = Annotated[bool, typer.Option("--json", help="As one JSON object.")]


@app.command()
def doctor(context: typer.Context, *, json_output: _Json = False) -> None:
    """Check everything that a run needs, and say how to mend what is wrong. Exit code of the first failed check.

    It looks at the data too, and counts what breaks the study's rules. Those numbers are of real rows, without noise:
    they are shown here and nowhere else. Nothing is sent, spent or changed.
    """
    # pandas and grpc, and torch and Flower in the course of it: seconds.
    from client.doctor.checks import CHECKS  # noqa: PLC0415
    from client.doctor.checkup import Case, Mark, examine, first_failure  # noqa: PLC0415

    place = place_of(context)
    on_result = (lambda _: None) if json_output else _show_result
    found = examine(Case(place.file, place.site), CHECKS, on_result=on_result)
    code = first_failure(found)
    if json_output:
        report = {"site": place.site, "code": int(code), "checks": [result.as_dict() for result in found]}
        typer.echo(json.dumps(report, allow_nan=False))
    else:
        counted = {mark: sum(result.mark == mark for result in found) for mark in Mark}
        say("", ", ".join(f"{number} {mark}" for mark, number in counted.items()))
    say_aside("counts of cells, records and units are of real rows: keep them at this site, out of mails and tickets")
    raise typer.Exit(int(code))


@app.command()
def rehearse(
    context: typer.Context,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer tries: finds gross mistakes alone.")] = False,
    canaries: Annotated[int | None, typer.Option(min=2, help="Planted in one run. Default: 150; quick: 20.")] = None,
    repetitions: Annotated[
        int | None, typer.Option(min=2, help="Replies with a unit, and without, a kind. Default: 100; quick: 20.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the rows; never of privacy noise.")] = 0,
    json_output: _Json = False,
) -> None:
    """Attack this site's own code on simulated rows, within the site's own limits. No real row is opened.

    Ends with 23 where what the attack proves contradicts what is claimed; an honest site is contradicted by chance in
    one rehearsal of twenty at most.
    """
    # torch: seconds.
    from client.audit import Plan, audit  # noqa: PLC0415

    settings, started = settings_of(context), time.monotonic()

    def on_step(what: str) -> None:
        say_aside(f"{time.monotonic() - started:5.0f} s  {what}")

    units, planted, tries = (20, 20, 20) if quick else (100, 150, 100)
    plan = Plan(units, canaries or planted, repetitions or tries, seed)
    try:
        study, policy = load_study(settings.study), read_policy(settings.policy)
        limits = SitePolicy(settings, policy, study, today=today_utc).limits
        found = audit(settings.study, plan, limits=limits, on_step=on_step)
    except PrivShareError as error:
        fail(error)
    if json_output:
        typer.echo(json.dumps(found.as_dict(), allow_nan=False))
    else:
        show_audit(found)
    if found.is_contradicted:
        raise typer.Exit(int(ExitCode.AUDIT_CONTRADICTED))


@app.command()
def status(context: typer.Context, *, json_output: _Json = False) -> None:
    """How this site stands. Exit code 0 if it runs and is connected; without `health` in site.yaml, if it runs."""
    settings = settings_of(context)
    standing = standing_of(settings, now=now())
    try:
        parts = _asked(settings) if settings.health is not None and standing.running else {}
    except PrivShareError as error:
        fail(error)
    if json_output:
        typer.echo(json.dumps({**standing.as_dict(), **parts}))
    else:
        spent = "" if standing.spent is None else f"{standing.spent:.2%} of the budget of all studies"
        days = (
            "none that can be used" if standing.certificate_days is None else f"{standing.certificate_days} days left"
        )
        facts = {
            "running": "yes" if standing.running else "no",
            "consent": standing.consent,
            "certificate": days,
            "spent": spent or "nothing, or the ledger cannot be read: privshare-client ledger verify",
            "sealed replies": f"{standing.replies}, the last at {standing.last_reply}"
            if standing.replies
            else "none yet",
            **(
                parts or {"connection": "not known: site.yaml gives no `health`" if settings.health is None else "none"}
            ),
        }
        show(facts, title=settings.site)
    from client.health import SERVING  # noqa: PLC0415 (grpc)

    is_well = parts.get("site") == SERVING if settings.health is not None else standing.running
    raise typer.Exit(0 if is_well else int(ExitCode.UNREACHABLE))


def _asked(settings: SiteSettings) -> dict[str, str]:
    from client.health import ask  # noqa: PLC0415 (grpc)

    assert settings.health is not None  # the caller has looked
    return {name or "site": state for name, state in ask(settings.health).items()}


def _show_result(result: "Result") -> None:
    from client.doctor.checkup import Mark  # noqa: PLC0415 (as above)

    is_plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    plain = {Mark.OK: "ok  ", Mark.WARNED: "warn", Mark.FAILED: "FAIL", Mark.SKIPPED: "skip"}
    drawn = {
        Mark.OK: ("✔", "green"),
        Mark.WARNED: ("!", "yellow"),
        Mark.FAILED: ("✘", "red"),
        Mark.SKIPPED: ("-", "dim"),
    }
    mark, style = (plain[result.mark], "") if is_plain else drawn[result.mark]
    console = Console(emoji=False)
    console.print(mark, style=style, end=" ", markup=False, highlight=False)
    console.print(f"{result.check}: {result.says}", markup=False, highlight=False, soft_wrap=True)
    if result.mend:
        console.print(f"{' ' * len(mark)}   mend: {result.mend}", markup=False, highlight=False, soft_wrap=True)


def show_audit(found: "Audit") -> None:
    """A table of what each game proved."""
    result = found.as_dict()
    table = Table(title=f"{result['study']}: epsilon for one {result['unit']} more or less, delta {result['delta']:g}")
    table.add_column("release")
    for heading in ("claimed", "at least", "detectable up to", "guesses"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for finding in result["findings"]:
        numbers = (finding[f"epsilon_{which}"] for which in ("claimed", "lower", "detectable"))
        row = (finding["kind"], *(f"{number:.3f}" for number in numbers), str(finding["trials"]), _verdict(finding))
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(
        f"All bounds hold together, with confidence {result['plan']['confidence']:g}. "
        "One below its claim proves no more than itself.",
        soft_wrap=True,
    )


def _verdict(finding: dict[str, Any]) -> str:
    if finding["contradicted"]:
        return "CONTRADICTED"
    # Not even releases without any noise would have been found out.
    beyond = finding["epsilon_claimed"] >= finding["epsilon_detectable"]
    return "beyond this audit" if beyond else "consistent"
