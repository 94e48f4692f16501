"""The commands `app` (the page) and `serve` (the interface and the page). `app.cli` makes commands of them."""

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.addresses import allowed_hosts, check_address, check_exposed, is_loopback
from app.api.config import ServerConfig
from app.options import AllowHost, Debug, Device, DType, Host, InType, ModelNames, ModelsOpen, OnDevice
from mm_rwkv7.sources import locate

if TYPE_CHECKING:
    from app.models import Models


def app(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    model: ModelNames = None,
    models_open: ModelsOpen = None,
    device: OnDevice = Device.AUTO,
    dtype: InType = DType.AUTO,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines in; the page has no password.")
    ] = False,
    allow_host: AllowHost = None,
    debug: Debug = False,
) -> None:
    """Serve the web page."""
    if not (is_loopback(host) or insecure):
        raise ValueError(
            f"{host} lets other machines in, and the page has no password here: "
            f"`mm-rwkv7 serve --host {host} --api-key KEY` serves it with one, --insecure lets anybody in"
        )
    check_address(host, port)
    config = ServerConfig(hosts=allowed_hosts(host, allow_host or ()))
    models = _models(model, device, dtype, models_open)
    from app.serving import serve as run

    run(models, host, port, config)


def serve(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    model: ModelNames = None,
    models_open: ModelsOpen = None,
    device: OnDevice = Device.AUTO,
    dtype: InType = DType.AUTO,
    api_key: Annotated[
        str | None, typer.Option(envvar="MM_RWKV7_API_KEY", help="What clients must send as their bearer token.")
    ] = None,
    page_password: Annotated[
        str | None,
        typer.Option(
            envvar="MM_RWKV7_PAGE_PASSWORD", help="For the page, whose user is mm-rwkv7; the API key if not given."
        ),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let other machines in without a key.")] = False,
    fetch_from: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Fetch pictures from there, such as https://example.com; repeatable."),
    ] = None,
    allow_host: AllowHost = None,
    mcp: Annotated[bool, typer.Option("--mcp", help="Offer tools to other models, at /tools/gradio_api/mcp/.")] = False,
    slots: Annotated[int, typer.Option(min=1, help="Requests worked on at once.")] = 32,
    states: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep states there as well, for the next process and for others beside it."),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Run so many engines under Ray Serve, with --states DIR between them; no page."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Serve OpenAI's interface under /v1, and the web page."""
    if find_spec("prometheus_client") is None:
        raise ValueError("serving needs more packages: pip install 'mm-rwkv7[serve]'")
    if mcp and find_spec("mcp") is None:
        raise ValueError("--mcp needs more packages: pip install 'mm-rwkv7[serve,mcp]'")
    if mcp and len(model or ()) > 1:
        raise ValueError(f"--mcp offers the tools of one model, got {', '.join(model or ())}")
    hosts = allowed_hosts(host, allow_host or ())
    config = ServerConfig(api_key, page_password or api_key, tuple(fetch_from or ()), hosts=hosts, tools=mcp)
    check_exposed(host, api_key, insecure)
    check_address(host, port)
    if states is not None:
        _check_folder(states)
    if replicas is None:
        models = _models(model, device, dtype, models_open, slots=slots, folder=states)
        from app.server import serve as run

        run(models, host, port, config)
    else:
        _serve_replicas(replicas, model or ["nano"], device, dtype, host, port, config, slots, states)


def _check_folder(folder: Path) -> None:
    """Make the folder for states. ValueError unless files can be written there."""
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"states cannot be kept in {folder}: {error.strerror}") from error


def _serve_replicas(
    count: int,
    models: list[str],
    device: str,
    dtype: str,
    host: str,
    port: int,
    config: ServerConfig,
    slots: int,
    states: Path | None,
) -> None:
    if len(models) > 1:
        raise ValueError(f"replicas are all of one model, got {', '.join(models)}")
    if find_spec("ray") is None:
        raise ValueError("replicas need Ray Serve: pip install 'mm-rwkv7[serve,ray]'")
    if states is None:
        raise ValueError("replicas hand states over by a folder that all of them see: give --states DIR")
    from app.engine import EngineConfig
    from app.replicas import Opened
    from app.replicas import serve as run

    run(Opened(models[0], device, dtype), count, host, port, config, EngineConfig(slots, folder=states.resolve()))


def _models(sources: list[str] | None, device: str, dtype: str, at_once: int | None, **config: Any) -> "Models":
    """Nothing is opened yet; the files that are there already are looked for."""
    sources = sources or ["nano"]
    for source in sources:
        locate(source)
    from app.engine import Engine, EngineConfig
    from app.models import Models
    from mm_rwkv7.pipeline import Pipeline

    def open_engine(source: str) -> Engine:
        return Engine(Pipeline.from_pretrained(source, device, dtype), EngineConfig(**config))

    return Models(sources, open_engine, at_once or len(sources))
