"""`privshare`: what a coordinator does before a run. Thin: parse, call one function, print."""

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.data.encoding import make_grids
from common.data.histograms import histogram_layout
from common.errors import OutputError, PrivShareError
from common.study import Study, load_study
from server.checkpoints import write_file
from server.drafts import draft_study
from server.noise_controller import share_plan
from server.survey import planned_tables

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Plan a study that sites can join.",
)
_err = Console(stderr=True, emoji=False)


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
        _fail(error)
    marked = draft.count("REPLACE: ")
    _err.print(
        f"wrote {out}: {marked} lines marked REPLACE were read off the rows. Replace them by public knowledge, delete "
        f"`draft: true`, then: privshare check {out}",
        markup=False,
        highlight=False,
        soft_wrap=True,
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
        plan = _plan(loaded, sites)
    except PrivShareError as error:
        _fail(error)
    if json_output:
        typer.echo(json.dumps(plan, allow_nan=False))
        return
    table = Table(title=f"{loaded.name}: valid", show_header=False)
    for name, value in plan.items():
        table.add_row(name.replace("_", " "), escape(f"{value:,.4g}" if isinstance(value, float) else str(value)))
    Console().print(table)


def _plan(study: Study, sites: int) -> dict[str, str | int | float]:
    """What follows from the study alone: the same for every table."""
    privacy, noise = study.privacy, study.noise
    accountant = study.accountant
    bound = accountant.bound(epsilon=privacy.epsilon, delta=privacy.delta)

    def stddev(tables: int, share: float) -> float:
        return accountant.noise_stddev(squared_sensitivity=tables, spend=share * bound, sampling=1.0)

    layout = histogram_layout(make_grids(study.measured), len(study.label_values), make_grids(study.channels))
    plan: dict[str, str | int | float] = {
        "digest": study.digest(),
        "guarantee": f"({privacy.epsilon:g}, {privacy.delta:g})-DP at each site",
        "unit": f"add or remove one {study.unit.name}",
        "accountant": ", ".join(f"{name} {value}" for name, value in accountant.as_dict().items()),
        "columns_beside_the_label": len(study.features),
        "channels": len(study.channels),
        "fine_cells": layout.n_cells,
        "noise_of_a_one_way_count_at_a_site": stddev(layout.n_tables, privacy.one_way_share),
    }
    # All measurements together; how it is spread over them does not change it.
    for name, (tables, share) in planned_tables(study).items():
        at_a_site = stddev(len(tables), (1 - privacy.one_way_share) * share)
        plan[f"tables_of_{name}"] = len(tables)
        plan[f"noise_of_a_count_of_{name}_at_a_site"] = at_a_site
        plan[f"noise_of_a_count_of_{name}_summed"] = at_a_site * sites**0.5
    shares = share_plan(noise.schedule, noise.rounds, noise.kappa, max_share=noise.max_share)
    plan["budget_by_measurement"] = ", ".join(f"{share:.0%}" for share in shares)
    return plan


def _fail(error: PrivShareError) -> NoReturn:
    _err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(int(error.code)) from None
