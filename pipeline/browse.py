"""Browse a dataset folder in a web browser; mark, exclude and comment samples.

    python pipeline/browse.py runs/mine/generated --source runs/mine/source

Then open the printed address. It is reachable from this machine only; on another machine, use `ssh
-L 8642:localhost:8642`. Marks are saved immediately, in marks.json of the dataset folder. All
programs that read the folder leave excluded samples out: training, filters, exports, prepare. Needs
the extra `browse`: pip install -e ".[browse]"
"""

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from pipeline.addresses import missing_folder
from pipeline.config import parse, show
from pipeline.errors import UserError, guard
from pipeline.metadata import metadata_files
from pipeline.setting_checks import require_between

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Config:
    """Settings of the browser."""

    data: tyro.conf.Positional[Path] = Path("runs/generated")
    """Dataset folder."""
    source: Path | None = None
    """Dataset folder of the source images, shown beside the samples."""
    quality: Path | None = None
    """Output folder of generation/score.py. None: `quality` in the dataset folder."""
    port: int = 8642
    """Port on this machine; 0 takes a free one."""


def check(config: Config) -> None:
    """Find bad settings before anything is read."""
    require_between(config, 0, 65535, "port")
    for path in (config.data, config.source, config.quality):
        if path is not None and not path.is_dir():
            raise missing_folder(path, "check the path")
    metadata_files(config.data)
    try:
        import starlette  # noqa: F401  # whether it is there
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'package {error.name} is missing; install the extra: pip install -e ".[browse]"'
        ) from None


def listen(port: int) -> socket.socket:
    """Open a port of this machine, which no other machine can reach."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # so that the address answers as soon as it is printed
    except OSError as error:
        raise UserError(
            f"--port {port}: cannot be opened ({error.strerror}); choose another, or 0"
        ) from None
    return listener


def main() -> int | None:
    """Serve the page until the program is stopped."""
    config, call = parse(Config, __doc__)
    if call.dry_run:
        show(config)
        return None
    check(config)
    listener = listen(config.port)
    import uvicorn

    from pipeline.browsing.app import make_app
    from pipeline.browsing.index import Index

    folder = config.data.resolve()
    index = Index(folder, config.quality or folder / "quality", config.source)
    if not os.access(folder, os.W_OK):
        print(f"notice: {folder}: cannot be written to, marks cannot be saved", file=sys.stderr)
    app = make_app(index)
    address = f"http://{HOST}:{listener.getsockname()[1]}/"
    print(f"{config.data}: {len(index.samples)} samples at {address} (Ctrl-C ends)", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
    server.run(sockets=[listener])
    return None


if __name__ == "__main__":
    guard(main)
