"""Bad input from a seed: bodies as bytes and as JSON, and well-framed requests that ask for nonsense."""

import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.faults.rawhttp import message

KINDS = ("json", "body-bytes", "requests")
"""What is fuzzed: JSON of a nearly right shape; bodies with bytes changed; method, path and headers."""
BODIES = {
    "/predict": ["a good film", ["a", "b"], {"text": "a", "text_pair": "b"}, [{"text": "a", "text_pair": "b"}, "c"]],
    "/embed": ["a good film", ["a", "b"]],
    "/tokenize": ["a good film", ["a", "b"], {"text": "a", "text_pair": "b"}],
    "/": ["a good film", ["a", "b"]],
}
TENSORS = {
    "id": "1",
    "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a good film"]}],
    "outputs": [{"name": "answers"}],
}
IDS = {
    "inputs": [
        {"name": "input_ids", "shape": [1, 3], "datatype": "INT64", "data": [[2, 5, 3]]},
        {"name": "attention_mask", "shape": [1, 3], "datatype": "INT64", "data": [1, 1, 1]},
        {"name": "token_type_ids", "shape": [1, 3], "datatype": "INT64", "data": [0, 0, 0]},
    ]
}
NAMES = (
    "inputs",
    "parameters",
    "text",
    "text_pair",
    "question",
    "context",
    "top_k",
    "function_to_apply",
    "truncate",
    "aggregation_strategy",
    "stride",
    "targets",
    "normalize",
    "input",
    "model",
    "encoding_format",
    "dimensions",
    "id",
    "outputs",
    "name",
    "shape",
    "datatype",
    "data",
    "binary_data_size",
    "binary_data_output",
    "user",
    "",
)
ODD_TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\ud83d",
    "\ude00\ud83d",
    "\ufffe\uffff",
    "\ufeff",
    "\u202e\u200b",
    "e" + "\u0301" * 50,
    "\ufdfa" * 20,
    "[MASK]",
    "[CLS][SEP]",
    "x" * 300,
    "x" * 9000,
    "NaN",
    "sigmoid",
    "\x1b[31m",
    "\u2028",
    "'\"<&>",
)
ODD_NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    1e308,
    5e-324,
    0.5,
    -0.0,
    float("nan"),
    float("inf"),
    True,
    False,
)
DATATYPES = ("INT64", "INT32", "FP32", "BYTES", "BOOL", "UINT8", "FP16", "INT128", "")
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
HEADERS = (
    "Content-Type",
    "Content-Length",
    "Content-Encoding",
    "Transfer-Encoding",
    "Accept",
    "Accept-Encoding",
    "Expect",
    "Connection",
    "Host",
    "Authorization",
    "Range",
    "If-None-Match",
    "X-Request-Timeout-Ms",
    "X-Request-Id",
    "Cookie",
    "Inference-Header-Content-Length",
    "Upgrade",
    "TE",
    "Origin",
    "X-Forwarded-For",
    "X-Odd",
)
VALUES = (
    "application/json",
    "application/json; charset=utf-8",
    "application/json;charset=latin-1",
    "text/plain",
    "gzip",
    "identity",
    "chunked",
    "0",
    "1",
    "5",
    "10",
    "-1",
    "nan",
    "1e9",
    "99999999999999999999",
    "*/*",
    "close",
    "keep-alive",
    "Upgrade",
    "h2c",
    "100-continue",
    "bytes=0-0,-1",
    "Bearer x",
    "Basic eDp5",
    "localhost",
    "\xff\xfe",
    "",
    "x" * 500,
)


@dataclass(frozen=True, slots=True)
class Input:
    """One request."""

    kind: str
    method: str
    path: str
    data: bytes
    """One whole request, whatever it says: one response must come, on a connection that may stay."""


class Maker:
    """Makes inputs for the paths of one server.

    Args:
        seed: the same one gives the same inputs.
        paths: those of the server's OpenAPI document, with the names of its models filled in, and their methods.
    """

    def __init__(self, seed: int, paths: dict[str, list[str]]) -> None:
        self._draw = random.Random(seed)
        self._posts = sorted(path for path, methods in paths.items() if "post" in methods)
        self._paths = sorted(paths)

    def inputs(self) -> Iterator[Input]:
        """Give inputs without end."""
        makers: dict[str, Callable[[], Input]] = {
            "json": self._json,
            "body-bytes": self._body_bytes,
            "requests": self._request,
        }
        weights = (50, 33, 17)
        while True:
            yield makers[self._draw.choices(KINDS, weights)[0]]()

    def _good(self, path: str) -> Any:
        if path.endswith("/infer"):
            return json.loads(json.dumps(self._draw.choice((TENSORS, IDS))))
        if path.endswith("/embeddings"):
            return {"input": self._draw.choice(["a", ["a", "b"]]), "model": self._draw.choice(["x", "tiny", "default"])}
        last = "/" + path.rpartition("/")[2]
        inputs = self._draw.choice(BODIES.get(last, BODIES["/predict"]))
        content: dict[str, Any] = {"inputs": json.loads(json.dumps(inputs))}
        if self._draw.random() < 0.5:
            content["parameters"] = {"top_k": self._draw.choice([1, 2, None])}
        return content

    def _json(self) -> Input:
        path = self._draw.choice(self._posts)
        content = self._good(path)
        for _ in range(self._draw.randint(0, 3)):
            content = self._changed(content)
        body = json.dumps(content, ensure_ascii=self._draw.random() < 0.5).encode("utf-8", "surrogatepass")
        return Input("json", "POST", path, message("POST", path, body))

    def _changed(self, content: Any) -> Any:
        """Return content in which one thing is another."""
        draw = self._draw
        if isinstance(content, dict) and content and draw.random() < 0.85:
            key = draw.choice(list(content))
            act = draw.random()
            if act < 0.6:
                return content | {key: self._changed(content[key])}
            if act < 0.75:
                return {name: value for name, value in content.items() if name != key}
            return content | {draw.choice(NAMES): self._value(2)}
        if isinstance(content, list) and content and draw.random() < 0.8:
            place = draw.randrange(len(content))
            act = draw.random()
            if act < 0.6:
                return [*content[:place], self._changed(content[place]), *content[place + 1 :]]
            if act < 0.8:
                return content * draw.choice((0, 2, 40))
            return [*content, self._value(2)]
        return self._value(3)

    def _value(self, depth: int) -> Any:
        draw = self._draw
        kind = draw.randrange(9 if depth else 6)
        if kind == 0:
            return None
        if kind <= 2:
            return draw.choice(ODD_NUMBERS)
        if kind == 3:
            return draw.choice(ODD_TEXTS)
        if kind == 4:
            return draw.choice((*NAMES, *DATATYPES))
        if kind == 5:
            return "".join(
                chr(draw.choice((draw.randrange(128), draw.randrange(0x110000)))) for _ in range(draw.randrange(12))
            )
        if kind == 6:
            return [self._value(depth - 1) for _ in range(draw.randrange(4))]
        if kind == 7:
            return {draw.choice(NAMES): self._value(depth - 1) for _ in range(draw.randrange(4))}
        return self._value(0)

    def _body_bytes(self) -> Input:
        path, draw = self._draw.choice(self._posts), self._draw
        body = json.dumps(self._good(path)).encode() if draw.random() < 0.85 else b""
        if draw.random() < 0.05:
            body = body.decode().encode(draw.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))
        body = self._mutated(body, draw.randint(1, 6))
        return Input("body-bytes", "POST", path, message("POST", path, body))

    def _mutated(self, data: bytes, changes: int) -> bytes:
        draw, out = self._draw, bytearray(data)
        for _ in range(changes):
            place = draw.randrange(len(out) + 1)
            act = draw.randrange(6)
            if act == 0 and out:
                out[place - 1] ^= 1 << draw.randrange(8)
            elif act == 1:
                out[place:place] = draw.randbytes(draw.randint(1, 8))
            elif act == 2:
                del out[place : place + draw.randint(1, 8)]
            elif act == 3:
                out[place:place] = draw.choice(_TOKENS)
            elif act == 4 and out:
                other = draw.randrange(len(out))
                out[place:place] = out[other : other + draw.randint(1, 30)]
            elif act == 5:
                del out[place:]
        return bytes(out)

    def _request(self) -> Input:
        """A whole request of odd method, path and headers, whose length is still right."""
        draw = self._draw
        method = draw.choice(METHODS) if draw.random() < 0.5 else draw.choice(("GET", "POST"))
        path = draw.choice(self._paths)
        if draw.random() < 0.4:
            path = self._odd_path(path)
        body = json.dumps(self._good(path)).encode() if method not in {"GET", "HEAD"} or draw.random() < 0.2 else None
        framing = {"content-length", "transfer-encoding", "connection", "expect", "upgrade", "host", "te"}
        names = [name for name in HEADERS if name.lower() not in framing]
        headers = {draw.choice(names): draw.choice(VALUES) for _ in range(draw.randrange(4))}
        if "Inference-Header-Content-Length" in headers and draw.random() < 0.5:
            headers["Inference-Header-Content-Length"] = str(draw.randrange(300))
        data = message(method, path, body, headers=headers, json_body=draw.random() < 0.9)
        return Input("requests", method, path, data)

    def _odd_path(self, path: str) -> str:
        draw = self._draw
        act = draw.randrange(6)
        if act == 0:
            return (
                path
                + "?"
                + "".join(draw.choice(string.printable[:90]) for _ in range(draw.randrange(30))).replace("#", "%")
            )
        if act == 1:
            return path + draw.choice(("/", "//", "/..", "%2f", "%00", ";a=b", "/%ff"))
        if act == 2:
            return path.upper()
        if act == 3:
            return "/" + "".join(draw.choice(string.ascii_letters + "/%.") for _ in range(draw.randrange(40)))
        if act == 4:
            place = draw.randrange(1, len(path) + 1)
            return path[:place] + "%" + f"{draw.randrange(256):02x}" + path[place:]
        return path.replace("/", "//", 1) or "/"


_TOKENS = (
    b"\0",
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"[",
    b"]",
    b"}",
    b'"',
    b",",
    b":",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"-",
    b"null",
    b"true",
    b"9" * 400,
    b"[" * 50,
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b"%",
    b"0x",
    b"\xef\xbb\xbf",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"HTTP/1.1",
    b"inputs",
    b"parameters",
)
