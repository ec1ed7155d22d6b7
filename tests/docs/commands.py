"""Commands in documents: found in shell blocks, taken apart, and read by the parsers of the programs themselves."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import typer

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "deploy" / "RUNBOOK.md", *(ROOT / "docs").rglob("*.md"))
)
SYSTEM = frozenset(
    (
        "cat",
        "cd",
        "chmod",
        "chown",
        "cp",
        "docker",
        "export",
        "flower-superexec",
        "flower-superlink",
        "head",
        "install",
        "jobs",
        "journalctl",
        "kill",
        "kubectl",
        "ln",
        "mkdir",
        "mv",
        "nginx",
        "openssl",
        "rsync",
        "sed",
        "sha256sum",
        "source",
        "systemctl",
        "tar",
        "timedatectl",
        "tr",
        "unzip",
        "useradd",
        "wait",
    )
)
"""Programs that are not ours: nothing is known of their options."""
_BETWEEN = frozenset(("&&", "||", ";", "|", "&"))
_FENCE = re.compile(r"^([ \t]*)```sh\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """One command of a document.

    page: where it stands. words: as a shell would pass them on, without redirections.
    """

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        """As it was typed, and where."""
        return f"{self.page}: {shlex.join(self.words)}"

    @property
    def program(self) -> str:
        """Which program it is: its file's name, or for Python the script's path."""
        name = Path(self.words[0]).name
        if name in ("python", "python3"):
            return self.words[1] if self.words[1] != "-m" else f"-m {self.words[2]}"
        return name if not self.words[0].startswith("deploy/") else self.words[0]

    @property
    def arguments(self) -> list[str]:
        """What the program is given."""
        if Path(self.words[0]).name in ("python", "python3"):
            return list(self.words[3 if self.words[1] == "-m" else 2 :])
        return list(self.words[1:])


def commands_of(page: str, text: str) -> list[Command]:
    r"""All commands of the shell blocks of a page, in their order.

    >>> [one.words for one in commands_of("p", "```sh\nmake demo  # x\nA=1 sudo -u b cp a b > c && ls -x\n```")]
    [('make', 'demo'), ('cp', 'a', 'b'), ('ls', '-x')]
    """
    return [
        Command(page, words)
        for block in _FENCE.finditer(text)
        for line in block[2].replace("\\\n", " ").splitlines()
        for words in _split(line)
    ]


def inline_of(page: str, text: str) -> list[Command]:
    """Commands of ours that stand between backticks in the prose; the words that stand for more left out."""
    prose = re.sub(r"^[ \t]*```.*?^[ \t]*```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"`((?:privshare|privshare-client|python simulations/[^\s`]+) [^`]+)`", prose)
    lines = (re.sub(r"\s+", " ", line).replace("...", "") for line in found)
    return [Command(page, words) for line in lines for words in _split(line)]


def _split(line: str) -> Iterator[tuple[str, ...]]:
    reader = shlex.shlex(line.replace(" 2>&1", ""), posix=True, punctuation_chars="()<>|&;")
    reader.whitespace_split = True
    words: list[str] = []
    skipped = False
    for word in [*reader, ";"]:
        if skipped:  # the file of a redirection
            skipped = False
        elif word in (">", ">>", "<"):
            skipped = True
        elif word in _BETWEEN:
            stripped = _without_prefix(words)
            if stripped:
                yield tuple(stripped)
            if "--" in stripped:  # what is run in a container
                yield tuple(stripped[stripped.index("--") + 1 :])
            words = []
        elif word not in ("(", ")"):
            words.append(word)


def _without_prefix(words: list[str]) -> list[str]:
    """Without settings of the environment and without `sudo -u NAME`."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words[3:] if words[:2] == ["sudo", "-u"] else words


# --- the programs' own parsers


def parse(app: typer.Typer, arguments: list[str], *, whole: bool = True) -> str:
    """Have a program's own parser read arguments, and run nothing; the path of the command inside it, "ledger show".

    Args:
        app: the program.
        arguments: as typed.
        whole: whether what is required must be there.

    Raises:
        click.ClickException: there is no such command or option, a value is of another kind, or something is missing.
    """
    command, path, rest, parent = typer.main.get_command(app), [], list(arguments), None
    while True:
        if not whole:
            for parameter in command.params:
                parameter.required = False
        context = command.make_context(command.name, rest, parent=parent)
        if not isinstance(command, click.Group):
            return " ".join(path)
        rest = [*context._protected_args, *context.args]
        if not rest:
            return " ".join(path)
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None  # it raises where there is none
        command, parent = found, context
        path.append(str(name))
