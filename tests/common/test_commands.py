"""What every command line has in common."""

from typer.testing import CliRunner

from common.commands import Commands
from common.errors import ExitCode, OutputError


def test_an_error_that_a_command_lets_through_is_one_line_and_its_code() -> None:
    app = Commands()

    @app.command()
    def main() -> None:
        raise OutputError("folder: is full [of rows]")

    result = CliRunner().invoke(app)
    assert (result.exit_code, result.stdout) == (ExitCode.OUTPUT_NOT_WRITABLE, "")
    assert result.stderr == "error: folder: is full [of rows]\n"
