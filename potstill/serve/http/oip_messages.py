"""What the Open Inference Protocol v2 sends and gets, as its REST specification writes it.

Source: https://github.com/kserve/open-inference-protocol, `inference_rest.md`, and Triton's `extension_binary_data.md`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from potstill.serve.http.exchange import SHORTEST_TIMEOUT_MS

Datatype = Literal["INT32", "INT64", "FP32", "BYTES"]
LONGEST_ID = 1_024
"""Characters of a request's id, which comes back with its answer."""


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InferTensor(_Exact):
    """One input. Its numbers or texts are in `data`, or behind the JSON if `binary_data_size` says so."""

    name: StrictStr
    shape: list[StrictInt] = Field(min_length=1, max_length=2)
    """[texts] or [texts, 1] for texts, [texts, tokens] for ids."""
    datatype: StrictStr
    parameters: dict[str, Any] = {}
    """`binary_data_size`, in bytes; other parameters are not looked at."""
    data: list[Any] | None = None
    """Row-major, nested or flat."""


class InferOutput(_Exact):
    """One output that is wanted."""

    name: StrictStr
    parameters: dict[str, Any] = {}
    """`binary_data`: whether it comes behind the JSON; other parameters are not looked at."""


class Envelope(_Exact):
    """The body of a request, its tensors not yet looked at."""

    id: StrictStr | None = None
    """Comes back with the answer."""
    parameters: dict[str, Any] = {}
    """The task's parameters, for texts; and `RequestParameters`."""
    inputs: list[Any] = Field(min_length=1)
    outputs: list[Any] | None = None
    """The outputs that are wanted; all by default."""


class TensorMetadata(BaseModel):
    """One input or output; -1 stands for a dimension of any size."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives: texts for answers, or the graph's inputs for the graph's outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """Who answers."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """The server runs."""

    live: bool


class Ready(BaseModel):
    """The server takes requests."""

    ready: bool


class ModelReady(BaseModel):
    """The model takes requests."""

    name: str
    ready: bool


class RequestParameters(BaseModel):
    """Parameters of a request that are the protocol's and not the task's."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    binary_data_output: StrictBool = False
    """Whether outputs come behind the JSON, unless they say otherwise themselves."""
    timeout: StrictInt | None = Field(default=None, ge=SHORTEST_TIMEOUT_MS * 1000)
    """Microseconds that the client gives the request; as X-Request-Timeout-Ms, of which the shorter counts."""
    priority: StrictInt = Field(default=0, ge=0)
    """Not looked at: requests are answered as they come."""
    content_type: StrictStr | None = None
    """Not looked at: MLServer's name for how tensors are to be read."""
