"""Public data sets that studies are shipped for: which files each is made of, and how they become its tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from simulations.converters.physionet2012 import convert

_STUDIES: Final = Path(__file__).parent / "studies"


@dataclass(frozen=True)
class Source:
    """A data set.

    study: the name of its study.
    files: below the folder of all data sets.
    convert: of data that are not as the study has them: the table and the long one, as text, of the files.
    """

    study: str
    files: tuple[str, ...]
    convert: Callable[[Sequence[Path]], tuple[pd.DataFrame, pd.DataFrame]] | None = None


SOURCES: Final[Mapping[str, Source]] = {
    "adult": Source("adult.yaml", ("adult/adult.data.gz", "adult/adult.test.gz")),
    "bank-marketing": Source("bank-marketing.yaml", ("bank-marketing/bank-full.csv.gz",)),
    "diabetes130": Source("diabetes130.yaml", ("diabetes130/diabetic_data.csv.gz",)),
    "heart-disease": Source(
        "heart-disease.yaml",
        tuple(f"heart-disease-uci/processed.{one}.data" for one in ("cleveland", "hungarian", "switzerland", "va")),
    ),
    "physionet2012": Source(
        "physionet2012.yaml",
        ("physionet2012-icu/set-a.parquet", "physionet2012-icu/Outcomes-a.txt"),
        lambda files: convert(files[:1], files[1:]),
    ),
}


@dataclass(frozen=True)
class Files:
    """What a federation is given."""

    study: Path
    data: list[Path]
    series: list[Path] | None


def prepare(name: str, data: Path, folder: Path) -> Files:
    """A data set as its study has it.

    Args:
        name: of `SOURCES`.
        data: folder with a folder of each data set.
        folder: where tables are written that have to be converted.
    """
    source = SOURCES[name]
    files = [data / file for file in source.files]
    study = _STUDIES / source.study
    if source.convert is None:
        return Files(study, files, None)
    paths = [folder / "table.csv", folder / "series.csv"]
    folder.mkdir(parents=True, exist_ok=True)
    for path, table in zip(paths, source.convert(files), strict=True):
        table.to_csv(path, index=False)
    return Files(study, paths[:1], paths[1:])
