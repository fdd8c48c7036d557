"""The command `specnorm`. What needs torch or onnx it starts as a child; each command imports what it needs itself."""

import os
import sys

import typer

from app.cli import bench, children, jobs, keys, models, serve, storage
from app.errors import SpecnormError

root = typer.Typer(
    help="Train, export and serve spectral-normalised networks whose every answer carries a Lipschitz bound that holds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for room in (serve, children, keys, storage, bench):
    room.register(root)
root.add_typer(models.commands, name="models")
root.add_typer(jobs.commands, name="jobs")
root.add_typer(keys.commands, name="keys")


def main() -> None:
    """Run one command: exit code 0 on success, 1 on a failed check, 2 on bad usage; an error is one sentence on stderr."""
    try:
        result = root(prog_name="specnorm", standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `specnorm … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        sys.exit(_tell(error))
    sys.exit(result if isinstance(result, int) else 0)


def _tell(error: Exception) -> int:
    """Write what went wrong to stderr and return the exit code."""
    usage = getattr(error, "format_message", None)  # of typer's own errors, whose base class it does not export
    if usage is not None:
        typer.echo(f"specnorm: {usage()} See `specnorm --help`.", err=True)
        return 2
    if type(error).__name__ == "Abort":
        typer.echo("specnorm: stopped.", err=True)
        return 1
    if os.environ.get("SPECNORM_TRACEBACK"):
        raise error
    known = isinstance(error, SpecnormError | ValueError | OSError)
    sentence = str(error) if known and str(error) else f"unexpected {type(error).__name__}: {error} (SPECNORM_TRACEBACK=1 shows where)"
    typer.echo(f"specnorm: {' '.join(sentence.split())}", err=True)
    return 1
