"""`privshare sample`: what a data consumer runs. Thin: parse, call one function, print."""

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.errors import PrivShareError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_err = Console(stderr=True, emoji=False)


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
            files = [stack.enter_context(TableFile(path)) for path in paths]
            begin = 0
            for units in drawn:
                for file, table in zip(files, tables_of(units, study, begin=begin).values(), strict=True):
                    file.write(table)
                begin += len(units.records)
        facts = describe(release, drawn, rows=begin, where=where or [], proportions=proportions or [], match=match)
        write_provenance(out, facts)
    except PrivShareError as error:
        _err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(int(error.code)) from None
    if json_output:
        typer.echo(json.dumps(facts, allow_nan=False))
    else:
        _show([asdict(one) for one in drawn.delivered()])
        _err.print(f"{begin} rows in {out}, seed {drawn.seed}", markup=False, highlight=False, soft_wrap=True)


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
