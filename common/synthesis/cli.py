"""What consumers and auditors of a release run, and what explains itself. Thin: parse, call one function, print."""

import json
import re
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from common.commands import ASIDE, Commands, fail, say_aside
from common.errors import ExitCode, OutputError, PrivShareError
from common.exits import as_page, entries, said_of
from common.files import write_durably

if TYPE_CHECKING:
    from common.verification import Verification

app = Commands()


@app.command()
def verify(
    release: Annotated[Path, typer.Argument(help="Release folder: with certificate.json in it.", show_default=False)],
    *,
    key: Annotated[
        list[str] | None, typer.Option(help="The coordinator's public key, in hexadecimal or in a file. Repeat it.")
    ] = None,
    site_key: Annotated[list[str] | None, typer.Option(help="A site's public key: NAME=HEX. Repeat it.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Check hashes, signatures, ledgers and epsilon of a release, offline; say what is guaranteed and what is not.

    Ends with 74 where anything does not hold, or where there is no guarantee. Keys that are not given are taken from
    the certificate itself: then anybody may have made it.
    """
    from common.verification import verify_release  # noqa: PLC0415 (scipy and pandas)

    try:
        keys = [_key(text) for text in key or []]
        site_keys = _site_keys(site_key)
    except PrivShareError as error:
        fail(error)
    found = verify_release(release, keys=keys, site_keys=site_keys)
    typer.echo(json.dumps(found.as_dict(), allow_nan=False) if json_output else "\n".join(_lines(found)))
    if not found.is_valid:
        raise typer.Exit(int(ExitCode.RELEASE_UNVERIFIED))


def _key(text: str) -> str:
    """A public key from what was typed: itself, or the name of a file with it.

    Raises:
        PrivShareError: neither.
    """
    try:
        said = text if _is_key(text) else Path(text).read_text(encoding="utf-8")
    except (OSError, ValueError):
        said = ""
    if not _is_key(said):
        raise PrivShareError(f"{text}: expected a public key of 64 digits, or a file with one", ExitCode.USAGE)
    return "".join(said.split()).lower()


def _site_keys(given: list[str] | None) -> dict[str, str]:
    """Keys by site. Raises as `_key` does."""
    return {name: _key(text) for name, _, text in (one.partition("=") for one in given or [])}


def _is_key(text: str) -> bool:
    return re.fullmatch(r"[0-9a-fA-F]{64}", "".join(text.split())) is not None


def _lines(found: "Verification") -> list[str]:
    """What people read."""
    lines = [f"{'OK' if one.passed else 'FAILED':8}{one.check:13}{one.reason}" for one in found.findings]
    failed = sum(not one.passed for one in found.findings)
    lines += ["", f"INVALID: {failed} of {len(lines)} checks failed, and nothing is guaranteed" if failed else "VALID"]
    lines += [found.statement] if found.statement else []
    for key in found.keys:
        lines.append(f"key of {key.owner}: {key.public} {'(pinned)' if key.pinned else '(NOT PINNED)'}")
    if not all(key.pinned for key in found.keys):
        lines.append(
            "Keys that are not pinned were taken from the certificate itself: whoever made it may have made them. Ask "
            "their owners, then use --key and --site-key."
        )
    if found.keys and found.keys[0].owner == "simulation":
        lines.append("The sites were simulated: one party held all their rows and keys, and vouches for them alone.")
    return [*lines, *(["Not guaranteed:"] if found.not_covered else []), *(f"- {one}" for one in found.not_covered)]


@app.command()
def sample(  # noqa: PLR0913 (one parameter an option)
    release: Annotated[
        Path, typer.Argument(help="Release folder: of a run, with generator/ in it.", show_default=False)
    ],
    *,
    n: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 10_000,
    where: Annotated[
        list[str] | None,
        typer.Option(help='What every row fulfils: "age>=65", diagnosis=sepsis, stay=3..7, weight= (none). Repeat it.'),
    ] = None,
    proportions: Annotated[
        list[str] | None,
        typer.Option(help="Shares of groups: risk=high:0.3,low:0.7 or age=..17:0.1,18..:0.9. Repeat it."),
    ] = None,
    mean: Annotated[
        list[str] | None, typer.Option(help="Mean of a column's present values: age=62. Repeat it.")
    ] = None,
    sd: Annotated[
        list[str] | None, typer.Option(help="Standard deviation, with the mean of the same column: age=12. Repeat it.")
    ] = None,
    match: Annotated[
        bool, typer.Option("--match", help="Distribute columns as the released one-way tables say.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same rows. Default: drawn.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write, .csv or .parquet.")] = Path("synthetic.csv"),
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    json_output: Annotated[bool, typer.Option("--json", help="What was delivered as one JSON object.")] = False,
) -> None:
    """Draw rows from a released generator, with conditions on any columns, shares of any groups and means of columns.

    Costs no privacy: a release may be asked as often as one likes. What was asked for and delivered, and which release
    it is from, is in a file beside the table that ends in .provenance.json; windows are in a second table, -windows.
    """
    # torch takes seconds to import, and most other commands do without.
    from common.synthesis.moments import parse_moments  # noqa: PLC0415
    from common.synthesis.provenance import describe, write_provenance  # noqa: PLC0415
    from common.synthesis.rows import tables_of  # noqa: PLC0415
    from common.synthesis.synthesizer import Synthesizer  # noqa: PLC0415
    from common.synthesis.tables import TableFile  # noqa: PLC0415

    try:
        synthesizer = Synthesizer.load(release, device=device)
        study = synthesizer.release.study
        drawn = synthesizer.stream(
            n,
            conditions=where or [],
            proportions=proportions or [],
            moments=parse_moments(mean or [], sd or []),
            match=match,
            seed=seed,
        )
        with ExitStack() as stack:
            paths = [out, *([out.with_stem(f"{out.stem}-windows")] if study.windows is not None else [])]
            files = [stack.enter_context(TableFile(path, study.columns | study.channels)) for path in paths]
            progress = stack.enter_context(Progress(console=ASIDE, transient=True, disable=not ASIDE.is_terminal))
            task, begin = progress.add_task("rows", total=n), 0
            for units in drawn:
                for file, table in zip(files, tables_of(units, study, begin=begin).values(), strict=True):
                    file.write(table)
                begin += len(units.records)
                progress.update(task, completed=begin)
        facts = describe(release, drawn, rows=begin, where=where or [], proportions=proportions or [], match=match)
        write_provenance(out, facts)
    except PrivShareError as error:
        fail(error)
    if json_output:
        typer.echo(json.dumps(facts, allow_nan=False))
    else:
        _show([asdict(one) for one in drawn.delivered()])
        say_aside(f"{begin} rows in {out}, seed {drawn.seed}")


def _show(delivered: list[dict[str, Any]]) -> None:
    if not delivered:
        return
    table = Table(title="Requested and delivered")
    table.add_column("rows with")
    table.add_column("requested", justify="right")
    table.add_column("delivered", justify="right")
    for one in delivered:
        table.add_row(one["group"], *(_figure(one[name], one["kind"]) for name in ("requested", "delivered")))
    Console().print(table)


def _figure(value: float | None, kind: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if kind == "share" else f"{value:.6g}"


@app.command()
def dpia(
    release: Annotated[Path, typer.Argument(help="Release folder: with certificate.json in it.", show_default=False)],
    *,
    key: Annotated[
        list[str] | None, typer.Option(help="The coordinator's public key, in hexadecimal or in a file. Repeat it.")
    ] = None,
    site_key: Annotated[list[str] | None, typer.Option(help="A site's public key: NAME=HEX. Repeat it.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write. Default: print it.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="The annex and where it is, as one JSON object.")] = False,
) -> None:
    """Write an annex for a data protection impact assessment, from a release that is verified first.

    What is in the release is filled in: parties, guarantee, risks of WP216 with the figures of its evaluation if there
    is one. What only the controller knows is marked. Ends with 74 where the release is not valid.
    """
    from common.synthesis.dpia import TO_FILL_IN, make_annex  # noqa: PLC0415 (scipy and pandas)

    try:
        annex = make_annex(release, keys=[_key(text) for text in key or []], site_keys=_site_keys(site_key))
        if out is not None:
            _write(out, annex)
    except PrivShareError as error:
        fail(error)
    left = annex.count(TO_FILL_IN)
    if json_output:
        typer.echo(json.dumps({"out": None if out is None else str(out), "to_fill_in": left, "annex": annex}))
    elif out is None:
        typer.echo(annex, nl=False)
    else:
        said = f"wrote {out}: {left} places are marked for the controller"
        say_aside(said)


def _write(path: Path, text: str) -> None:
    try:
        write_durably(path, text.encode())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None


@app.command()
def explain(
    what: Annotated[
        str, typer.Argument(help="epsilon; an exit code, by number or name; or codes: all.", show_default=False)
    ],
    *,
    epsilon: Annotated[float, typer.Option(help="Of the guarantee at one site.")] = 1.0,
    delta: Annotated[float, typer.Option(help="Of the guarantee at one site.")] = 1e-6,
    prior: Annotated[
        list[float] | None,
        typer.Option(help="How sure somebody was, 0 to 1, that one unit takes part. Repeat it.", show_default=False),
    ] = None,
    sites: Annotated[int, typer.Option(min=1, help="At how many sites the unit is, with the same guarantee.")] = 1,
    json_output: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Say what an epsilon means in odds, or what an exit code means and how to mend it.

    The options but --json are those of epsilon.
    """
    try:
        if what == "epsilon":
            from common.evaluation.odds import odds_of  # noqa: PLC0415 (scipy and pandas)
            from common.synthesis.explain import PRIORS, odds_said  # noqa: PLC0415

            found = odds_of(epsilon=epsilon, delta=delta, priors=prior or PRIORS, sites=sites)
            typer.echo(json.dumps(found.as_dict(), allow_nan=False) if json_output else odds_said(found))
        elif what == "codes":
            typer.echo(
                json.dumps([one.as_dict() for one in entries().values()]) if json_output else as_page().rstrip("\n")
            )
        else:
            typer.echo(said_of(what, as_json=json_output))
    except PrivShareError as error:
        fail(error)
