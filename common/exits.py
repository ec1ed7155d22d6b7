"""What each exit code means, why it usually comes, and how to mend it.

`exits.yaml` is the one place where that is written: commands print it, and docs/troubleshooting.md is made of it.
"""

import json
import textwrap
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

import yaml

from common.errors import ExitCode, PrivShareError

_WIDTH: Final = 120
_HEAD: Final = """\
# Troubleshooting

Every command ends with one of these codes; all but 0 come with one line on standard error that names the field and the
rule. `privshare explain 24`, or `privshare-client --site NAME explain 24` at a site, prints one of the entries below,
and `privshare explain codes` the whole page. A number never changes its meaning.
"""


@dataclass(frozen=True)
class Entry:
    """What is said of one exit code; Markdown.

    means: what is so. cause: the usual one. remedy: how to mend it.
    """

    code: ExitCode
    means: str
    cause: str
    remedy: str

    def as_dict(self) -> dict[str, str | int]:
        """For JSON."""
        said = {"means": self.means, "cause": self.cause, "remedy": self.remedy}
        return {"code": int(self.code), "name": self.code.name, **said}

    def as_markdown(self) -> str:
        """A section of a page."""
        said = (self.means, f"- Usual cause: {self.cause}\n- Remedy: {self.remedy}")
        return "\n\n".join([f"## {self}", *map(_wrapped, said)]) + "\n"

    def __str__(self) -> str:
        """Number and name."""
        return f"{int(self.code)} {self.code.name}"


@cache
def entries() -> dict[ExitCode, Entry]:
    """All of them, by rising number."""
    said = yaml.safe_load(files("common").joinpath("exits.yaml").read_text(encoding="utf-8"))
    return {code: Entry(code, **said[code.name]) for code in sorted(ExitCode)}


def entry_of(text: str) -> Entry | None:
    """The entry that a number or a name stands for, in any letter case; None where there is none.

    >>> str(entry_of("24")), str(entry_of("unconfirmed")), entry_of("1")
    ('24 UNCONFIRMED', '24 UNCONFIRMED', None)
    """
    by_name = {name: str(int(code)) for code in entries() for name in (code.name, str(int(code)))}
    number = by_name.get(text.strip().upper().replace(" ", "_").replace("-", "_"))
    return None if number is None else entries()[ExitCode(int(number))]


def said_of(text: str, *, as_json: bool = False) -> str:
    """The entry as a section of a page, or as a JSON object.

    Raises:
        PrivShareError: there is no such code.
    """
    entry = entry_of(text)
    if entry is None:
        raise PrivShareError(f"{text}: expected an exit code, by number or name", ExitCode.USAGE)
    return json.dumps(entry.as_dict()) if as_json else entry.as_markdown().rstrip("\n")


def as_page() -> str:
    """All of them, as docs/troubleshooting.md."""
    return "\n".join([_HEAD, *(entry.as_markdown() for entry in entries().values())])


def _wrapped(text: str) -> str:
    wrap = textwrap.TextWrapper(_WIDTH, break_long_words=False, break_on_hyphens=False)
    lines = []
    for line in text.splitlines():
        wrap.subsequent_indent = "  " if line.startswith("- ") else ""
        lines.append(wrap.fill(line))
    return "\n".join(lines)
