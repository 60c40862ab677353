"""The options of `potstill serve`, as annotated types for typer; their help texts are what users read."""

from pathlib import Path
from typing import Annotated

import typer

from potstill.bundle import MODEL_FILES, EngineName

BundlesArgument = Annotated[
    list[str],
    typer.Argument(
        help="Folders that `potstill export` wrote, each FOLDER, NAME=FOLDER or NAME=FOLDER@PRECISION. "
        "The first one answers where a request names no model.",
        show_default=False,
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help=f"Which of a bundle's files answers: {', '.join(MODEL_FILES)}; @PRECISION says it of one.",
        show_default="fp32, or the only one",
    ),
]
EngineOption = Annotated[
    EngineName,
    typer.Option(
        metavar="ENGINE",
        help="What runs the files: onnxruntime, or openvino (extra of that name), faster for int8-static.",
    ),
]
HostOption = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")]
PortOption = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)]
ShadowOption = Annotated[
    str | None,
    typer.Option(
        help="NAME of a second model that is asked what the first was asked, when there is time; "
        "/metrics says how often they agree."
    ),
]
ThreadsOption = Annotated[
    int, typer.Option(help="Threads of one inference; more answer a lone client sooner, and a crowd later.", min=1)
]
RunnersOption = Annotated[
    int | None, typer.Option(help="Inferences at a time.", min=1, show_default="the cores over --threads")
]
AllowDriftOption = Annotated[
    bool,
    typer.Option("--allow-drift", help="Batch texts even where a file's answers depend on the batch."),
]
ApiKeyFileOption = Annotated[
    Path | None,
    typer.Option(help="One bearer key per line; POTSTILL_API_KEYS, separated by commas, adds to them."),
]
MaxBodyBytesOption = Annotated[int, typer.Option(help="Largest request body, in bytes.", min=1)]
MaxInputsOption = Annotated[int, typer.Option(help="Most texts in one request.", min=1)]
MaxCharactersPerTokenOption = Annotated[
    int, typer.Option(help="Longest text, in characters per token of the model's max length.", min=1)
]
MaxConnectionsOption = Annotated[int, typer.Option(help="Most open connections.", min=1)]
MaxWaitMsOption = Annotated[
    float | None,
    typer.Option(help="Predicted wait beyond which a request gets 429.", show_default="chosen from what requests take"),
]
RequestSecondsOption = Annotated[float, typer.Option(help="Longest time that a request may take.")]
DrainSecondsOption = Annotated[
    float, typer.Option(help="After SIGTERM, time to go on answering while /health/ready says no.", min=0)
]
ShutdownSecondsOption = Annotated[float, typer.Option(help="Time to finish after that.")]
UdsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Unix socket to listen on instead of an address.", show_default=False),
]
TlsCertOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Certificate and its chain as PEM, for HTTPS.", show_default=False),
]
TlsKeyOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The certificate's key as PEM, without a passphrase.", show_default=False),
]
RootPathOption = Annotated[
    str,
    typer.Option(
        metavar="PATH", help="Path that a proxy in front adds and strips, such as /potstill.", show_default="none"
    ),
]
CorsOriginOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORIGIN",
        help="Origin whose web pages may read answers, such as https://app.example; repeatable, * is all.",
        show_default="none",
    ),
]
AllowedHostOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST",
        help="Host name that requests may ask for; repeatable, * is any.",
        show_default="this machine's on loopback without keys, else any",
    ),
]
