"""Runs pytest again and again, each time in a process of its own, in which the large libraries are loaded already.

`python -m tests.mutants.zygote LIBRARY ...` loads these, and then answers each line of JSON with a line that holds an
exit status. It loads nothing of this project, so that what a test imports is what lies in the folder at that time.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("client", "common", "server", "simulations")
ELSEWHERE = 70
"""The exit status when a package was imported from another folder than this process's own."""
_NOT_RUN = 71


def main() -> None:
    """Fork for each order, and answer with what became of it."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = _NOT_RUN
            try:
                status = _run(json.loads(line))
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(ended)}\n")
        sys.stdout.flush()


def _run(order: dict[str, Any]) -> int:
    """The exit status of pytest.

    order: its arguments, the file that its output goes to, and whether bytecode may stay.
    """
    folder = Path.cwd()
    printed = os.open(order["printed"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(printed, descriptor)
    sys.dont_write_bytecode = not order["writes_bytecode"]
    import pytest  # noqa: PLC0415 (it must see the libraries of tests before they are imported)

    status = int(pytest.main(order["arguments"]))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    loaded = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES]
    return status if all(path and Path(path).is_relative_to(folder) for path in loaded) else ELSEWHERE


if __name__ == "__main__":
    main()
