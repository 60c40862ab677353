"""`potstill serve`: answer over HTTP from a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from potstill.extras import require


def serve(
    bundle: Annotated[Path, typer.Argument(help="The folder that `potstill export` wrote.", show_default=False)],
    precision: Annotated[str, typer.Option(help="Which of the bundle's files answers: fp32, fp16 or int8.")] = "fp32",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    threads: Annotated[
        int | None, typer.Option(help="Threads of one inference.", min=1, show_default="the cores this process may use")
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request body, in bytes.", min=1)] = 2_000_000,
    max_inputs: Annotated[int, typer.Option(help="Most texts in one request.", min=1)] = 64,
    max_characters_per_token: Annotated[
        int, typer.Option(help="Longest text, in characters per token of the model's max length.", min=1)
    ] = 250,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait; more get 429.", min=1)] = 32,
    shutdown_seconds: Annotated[int, typer.Option(help="Time to finish after SIGTERM.", min=1)] = 20,
) -> None:
    """Answer over HTTP from a bundle, without PyTorch: POST /predict, GET /health, GET /info.

    Example: potstill serve student-onnx/ --precision int8 --port 8000
    """
    for module in ("onnxruntime", "tokenizers", "starlette", "uvicorn"):
        require(module, extra="serve")
    from potstill.serve import Encoder
    from potstill.serve import server as serving
    from potstill.serve.limits import Limits

    limits = Limits(
        body_bytes=max_body_bytes,
        inputs=max_inputs,
        characters_per_token=max_characters_per_token,
        waiting=max_waiting,
        shutdown_seconds=shutdown_seconds,
    )
    with serving.bind(host, port) as listener:
        encoder = Encoder(bundle, precision=precision, threads=threads)
        shown = f"[{host}]" if ":" in host else host
        typer.echo(
            f"potstill serve: http://{shown}:{listener.getsockname()[1]}, {precision}, "
            f"{encoder.session.threads} threads, texts up to {encoder.manifest.max_length} tokens",
            err=True,
        )
        serving.serve(encoder, listener, limits=limits)
