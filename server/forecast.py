"""What follows from a study alone, before any site is asked: the noise that its budget buys, and where."""

from common.data.encoding import make_grids
from common.data.histograms import histogram_layout
from common.study import Study
from common.wire.agenda import planned_tables
from server.noise_controller import share_plan


def plan_of(study: Study, sites: int) -> dict[str, str | int | float]:
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
