"""The command `persona`."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from persona import runtime
from persona.errors import ConfigError
from pipelines import console, doctor, tracking
from pipelines.commands import export as export_cli
from pipelines.commands import serve as serve_cli
from pipelines.commands import versions as workbench_cli
from pipelines.commands.recsys import main as recsys_cli
from pipelines.commands.vision import main as vision_cli
from pipelines.tracking.store import artifact_root, database_path, default_uri, prepared

HOST = "127.0.0.1"
PORT = 5000

PortOption = Annotated[int, typer.Option(help="Port of the MLflow UI.", min=1, max=65535)]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
app.add_typer(recsys_cli.app, name="recsys")
app.add_typer(vision_cli.app, name="vision")
workbench_cli.register(app)
serve_cli.register(app)
export_cli.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"persona {version('persona')}")
        raise typer.Exit


EXAMPLES = """
**Start here**

    persona recsys run --data movielens-small    # ratings in, a model out
    persona ui                                   # compare runs and models
    persona doctor                               # if something fails
"""


@app.callback(epilog=EXAMPLES)
def persona(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Personalise on-device models in real time, by editing their parameters instead of training them.

    Runs, figures and models are kept in an MLflow store: mlruns/mlflow.db under the working directory, or whatever
    MLFLOW_TRACKING_URI says. Exit codes: 0 done, 1 a bug or a failed check, 2 something you can mend, 130 interrupted.
    """


@app.command("doctor", epilog="Example:  persona doctor --json --port 5001")
def doctor_command(port: PortOption = PORT, as_json: console.JsonOption = False) -> int:
    """Look for what is wrong with the installation and the MLflow store, and print the line that mends it.

    Ends with 0 if nothing failed, and with 1 otherwise; warnings do not count.
    """
    out = console.Output(as_json)
    findings = doctor.examine(port)
    doctor.show(findings, out)
    return 0 if doctor.healthy(findings) else 1


@app.command(epilog="Example:  persona ui --port 5001")
def ui(port: PortOption = PORT) -> None:
    """Open the MLflow UI on the store in use, for browsers of this machine, until Ctrl-C."""
    uri = default_uri()
    path = database_path(uri)
    if uri.startswith(("http:", "https:")):
        raise ConfigError(f"MLFLOW_TRACKING_URI names a server, which has a UI of its own: open {uri} in a browser")
    if doctor.port_taken(port):
        raise ConfigError(f"port {port} is taken by another program: persona ui --port {doctor.free_port(port)}")
    with prepared(uri):
        pass
    # Without its workflowType the address opens the UI with the words of language models.
    print(f"http://{HOST}:{port}/?workflowType=machine_learning  (Ctrl-C ends it)", flush=True)
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # seven processes and 800 MB that nothing here needs
    server = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", uri]
    files = ["--default-artifact-root", str(artifact_root(path))] if path else []
    os.execv(sys.executable, [*server, *store, *files])


def main(arguments: list[str] | None = None) -> int:
    """Run the command `persona` and return its exit code; ``arguments`` default to those of the process."""
    runtime.set_environment()
    tracking.command_line[:] = sys.argv[1:] if arguments is None else arguments
    return console.run(app, arguments, on_failure=tracking.note_failure)


if __name__ == "__main__":
    sys.exit(main())
