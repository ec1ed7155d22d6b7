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
from common.privacy.budget import mu_of, noise_stddev_for
from common.study import Study, load_study
from server.checkpoints import write_file
from server.drafts import draft_study

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
    squared_mu = mu_of(epsilon=study.privacy.epsilon, delta=study.privacy.delta) ** 2
    columns = len(study.features)
    layout = histogram_layout(make_grids(study.features), len(study.label_values))
    pairs = columns * (columns - 1) // 2
    share = study.privacy.one_way_share
    one_way = noise_stddev_for(squared_sensitivity=layout.n_tables, spend=share * squared_mu)
    pairwise = noise_stddev_for(squared_sensitivity=max(pairs, 1), spend=(1 - share) * squared_mu)
    return {
        "digest": study.digest(),
        "guarantee": f"({study.privacy.epsilon:g}, {study.privacy.delta:g})-DP at each site",
        "unit": f"add or remove one {study.unit.name}",
        "columns_beside_the_label": columns,
        "fine_cells": layout.n_cells,
        "pair_tables": pairs,
        "noise_of_a_one_way_count_at_a_site": one_way,
        "noise_of_a_pair_count_at_a_site": pairwise,
        "noise_of_a_pair_count_summed": pairwise * sites**0.5,
    }


def _fail(error: PrivShareError) -> NoReturn:
    _err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(int(error.code)) from None
