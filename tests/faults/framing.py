"""The HTTP abuse catalogue: requests that break the standard, and those that only strain it."""

import gzip
import json
from dataclasses import dataclass

from tests.faults.bed import CANARY, PREDICTED, Bed, Fault, answer_of, clean_end, is_error, well
from tests.faults.rawhttp import Connection, NoAnswer, message, predict_message

BODY = json.dumps({"inputs": CANARY}).encode()
SIZE = f"Content-Length: {len(BODY)}\r\n".encode()
POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
IN_CHUNKS = f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n"
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(190))


@dataclass(frozen=True, slots=True)
class Abuse:
    """Bytes, and the statuses that may answer them; None among them: the connection may end without an answer."""

    name: str
    data: bytes
    statuses: tuple[int | None, ...]
    then_ends: bool = False
    """Whether the client ends its sending side afterwards."""


REFUSED = (400, None)
ABUSES = [
    Abuse("content-length-then-eof", POST + b"Content-Length: 4000\r\n\r\n" + BODY, (400, 408, None), then_ends=True),
    Abuse("content-length-negative", POST + b"Content-Length: -5\r\n\r\n" + BODY, REFUSED),
    Abuse("content-length-not-a-number", POST + b"Content-Length: 0x10\r\n\r\n" + BODY, REFUSED),
    Abuse("content-length-plus", POST + b"Content-Length: +18\r\n\r\n" + BODY, REFUSED),
    Abuse("content-length-overflow", POST + b"Content-Length: 99999999999999999999999\r\n\r\n", (400, 413, None)),
    Abuse("content-length-huge", POST + b"Content-Length: 9000000000\r\n\r\n", (413,)),
    Abuse("content-length-twice", POST + SIZE + b"Content-Length: 3\r\n\r\n" + BODY, REFUSED),
    Abuse("content-length-list", POST + b"Content-Length: 5, 5\r\n\r\n" + BODY, REFUSED),
    Abuse("content-length-and-chunked", POST + SIZE + CHUNKED + b"\r\n" + IN_CHUNKS, REFUSED),
    Abuse("chunked-and-content-length", POST + CHUNKED + SIZE + b"\r\n" + IN_CHUNKS, REFUSED),
    Abuse("transfer-encoding-unknown", POST + b"Transfer-Encoding: gzip\r\n\r\n" + BODY, (400, 411, 415, 501, None)),
    Abuse("transfer-encoding-twice", POST + CHUNKED + CHUNKED + b"\r\n" + IN_CHUNKS, (200, 400, None)),
    Abuse("transfer-encoding-obscured", POST + b"Transfer-Encoding: xchunked\r\n" + SIZE + b"\r\n" + BODY, REFUSED),
    Abuse("chunk-size-not-hex", POST + CHUNKED + b"\r\nxyz\r\n" + BODY + b"\r\n0\r\n\r\n", REFUSED),
    Abuse("chunk-size-negative", POST + CHUNKED + b"\r\n-5\r\n" + BODY + b"\r\n0\r\n\r\n", REFUSED),
    Abuse("chunk-size-overflow", POST + CHUNKED + b"\r\nffffffffffffffffff\r\n" + BODY, (400, 413, None)),
    Abuse("chunk-too-short", POST + CHUNKED + b"\r\n3\r\n" + BODY + b"\r\n0\r\n\r\n", REFUSED),
    Abuse("chunk-extension-long", POST + CHUNKED + b"\r\n5;" + b"x" * 100_000 + b"\r\nhello", (400, 408, 413, 431)),
    Abuse("trailers-many", POST + CHUNKED + b"\r\n0\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", (400, 413, 422, 431, None)),
    Abuse("body-on-get", b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n" + SIZE + b"\r\n" + BODY, (200, 400)),
    Abuse("header-one-huge", POST + b"X-Long: " + b"x" * 200_000 + b"\r\n\r\n", (400, 431, None)),
    Abuse("headers-100000", POST + b"X-A: b\r\n" * 100_000 + b"\r\n", (400, 431, None)),
    Abuse("url-1-mb", b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, 414, None)),
    Abuse("query-100-kb", b"GET /docs?" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: [::1]\r\n\r\n", (400, 414, None)),
    Abuse("header-without-colon", POST + b"nonsense\r\n\r\n", REFUSED),
    Abuse("header-name-with-space", POST + b"Content-Length : 18\r\n\r\n" + BODY, REFUSED),
    Abuse("header-folded", POST + b"X-A: b\r\n c\r\n" + SIZE + b"\r\n" + BODY, (200, 400, None)),
    Abuse("header-with-nul", POST + b"X-A: b\x00c\r\n" + SIZE + b"\r\n" + BODY, REFUSED),
    Abuse("header-bare-cr", POST + b"X-A: b\rc\r\n" + SIZE + b"\r\n" + BODY, REFUSED),
    Abuse("header-not-ascii", POST + b"X-\xff: b\r\n" + SIZE + b"\r\n" + BODY, (200, 400, None)),
    Abuse("line-feeds-only", b"GET /health/live HTTP/1.1\nHost: x\n\n", (200, 400, None)),
    Abuse("method-unknown", b"BREW /predict HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, 405, 501, None)),
    Abuse("method-lower-case", b"get /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, 405, 501, None)),
    Abuse("method-1-mb", b"G" * 1_000_000, (400, 414, 431, None)),
    Abuse("method-connect", b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, 404, 405, 501, None)),
    Abuse("method-trace", b"TRACE / HTTP/1.1\r\nHost: localhost\r\nX-Secret: s\r\n\r\n", (400, 405, 501, None)),
    Abuse("method-options-star", b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", (200, 204, 400, 404, 405, None)),
    Abuse("http-0.9", b"GET /health/live\r\n\r\n", REFUSED),
    Abuse("http-1.0", b"GET /health/live HTTP/1.0\r\n\r\n", (200,)),
    Abuse("http-2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 405, 505, None)),
    Abuse("http-version-9.9", b"GET /health/live HTTP/9.9\r\nHost: localhost\r\n\r\n", (400, 505, None)),
    Abuse("upgrade-h2c", b"GET / HTTP/1.1\r\nHost: [::1]\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", (200, 404)),
    Abuse(
        "upgrade-websocket",
        b"GET /health HTTP/1.1\r\nHost: [::1]\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        (200, 400),
    ),
    Abuse("host-missing", b"GET /health/live HTTP/1.1\r\n\r\n", (200, 400)),
    Abuse("host-twice", b"GET /health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", (200, 400)),
    Abuse("host-with-path", b"GET /health/live HTTP/1.1\r\nHost: x/predict?\r\n\r\n", (200, 400)),
    Abuse("target-absolute", b"GET http://other.example/health/live HTTP/1.1\r\nHost: [::1]\r\n\r\n", (200, 400, 404)),
    Abuse("target-dots", b"GET /docs/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, 404)),
    Abuse("target-encoded-dots", b"GET /docs/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, 404)),
    Abuse("target-bad-percent", b"GET /%zz%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, 404)),
    Abuse("target-not-ascii", b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, 404, None)),
    Abuse("tls-hello", TLS_HELLO, REFUSED),
    Abuse("random-bytes", bytes(range(256)) * 40, REFUSED),
    Abuse("nul-bytes", b"\0" * 10_000, REFUSED),
    Abuse("only-line-ends", b"\r\n" * 50_000, (400, 408, 431, None)),
    Abuse("smtp", b"EHLO example.org\r\n", (400, 408, None)),
    Abuse("redis", b"*1\r\n$4\r\nPING\r\n", (400, 408, None)),
    Abuse(
        "content-encoding-gzip-bomb",
        message("POST", "/predict", gzip.compress(b" " * 50_000_000), headers={"Content-Encoding": "gzip"}),
        (413, 415),
    ),
    Abuse("content-encoding-unknown", message("POST", "/predict", BODY, headers={"Content-Encoding": "br"}), (415,)),
    Abuse("content-type-missing", message("POST", "/predict", BODY, json_body=False), (415,)),
    Abuse(
        "content-type-form",
        message(
            "POST",
            "/predict",
            b"inputs=a",
            json_body=False,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        ),
        (415,),
    ),
    Abuse(
        "content-type-multipart",
        message("POST", "/predict", BODY, json_body=False, headers={"Content-Type": "multipart/form-data; boundary=x"}),
        (415,),
    ),
    Abuse(
        "content-type-utf-16",
        message(
            "POST",
            "/predict",
            BODY.decode().encode("utf-16"),
            json_body=False,
            headers={"Content-Type": "application/json; charset=utf-16"},
        ),
        (415,),
    ),
    Abuse("timeout-header-nan", predict_message(CANARY, headers={"X-Request-Timeout-Ms": "nan"}), (422,)),
    Abuse("timeout-header-negative", predict_message(CANARY, headers={"X-Request-Timeout-Ms": "-1"}), (422,)),
    Abuse("timeout-header-infinite", predict_message(CANARY, headers={"X-Request-Timeout-Ms": "inf"}), (422,)),
    Abuse("timeout-header-huge", predict_message(CANARY, headers={"X-Request-Timeout-Ms": "9" * 400}), (200, 422)),
    Abuse("timeout-header-text", predict_message(CANARY, headers={"X-Request-Timeout-Ms": "soon"}), (422,)),
    Abuse("request-id-long", predict_message(CANARY, headers={"X-Request-Id": "x" * 5_000}), (200, 422)),
    Abuse("range-many", message("GET", "/docs", headers={"Range": "bytes=" + "0-," * 5_000}), (200, 206, 404, 416)),
]

_OLD = b"POST /predict HTTP/1.0\r\nContent-Type: application/json\r\n"
_LIVE = b"GET /health/live HTTP/1.0\r\n"
_KEPT = b"Connection: keep-alive\r\n"
HOSTLESS: dict[str, tuple[bytes, list[int]]] = {
    "body": (_OLD + SIZE + b"\r\n" + BODY, [200]),
    "body-kept": (_OLD + _KEPT + SIZE + b"\r\n" + BODY + _LIVE + b"\r\n", [200]),
    "body-of-a-get": (_LIVE + b"Content-Length: 1\r\n\r\nx", [200]),
    "body-of-a-head": (b"HEAD /health/live HTTP/1.0\r\nContent-Length: 1\r\n\r\nx", [200]),
    "body-of-another-method": (b"PUT / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", [405]),
    "body-of-zero": (_LIVE + _KEPT + b"Content-Length: 0\r\n\r\n" + _LIVE + b"\r\n", [200]),
    "body-then-more": (_LIVE + b"Content-Length: 1\r\n\r\nxyz", [200]),
    "body-over-the-cap": (_OLD + b"Content-Length: 9000000000\r\n\r\nx", [413]),
    "body-is-a-request": (
        _LIVE + _KEPT + b"Content-Length: 29\r\n\r\n" + _LIVE + b"\r\n" + _LIVE + b"\r\n",
        [200],
    ),
    "chunked": (_OLD + CHUNKED + b"\r\n" + IN_CHUNKS, [400]),
    "chunked-1.1": (b"POST /predict HTTP/1.1\r\n" + CHUNKED + b"\r\n" + IN_CHUNKS, [400]),
    "length-1.1": (b"GET /health/live HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", [400]),
    "expect": (_OLD + b"Expect: 100-continue\r\n" + SIZE + b"\r\n" + BODY, [200]),
    "expect-1.1": (b"GET /health/live HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", [400]),
    "upgrade": (_LIVE + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\nx", [200]),
}
"""Requests of HTTP/1.0 without a host, and of HTTP/1.1 although it needs one, with what must answer them."""


def framing(bed: Bed) -> str:
    server = bed.shared()
    wrong = []
    for abuse in ABUSES:
        try:
            with Connection(server.port, seconds=10) as connection:
                connection.send(abuse.data)
                if abuse.then_ends:
                    connection.half_close()
                _read_allowed(connection, abuse)
        except (NoAnswer, AssertionError, OSError, ValueError) as error:
            wrong.append(f"{abuse.name}: {error}")
        assert server.process.poll() is None, f"{abuse.name} ended the server"
    assert not wrong, "; ".join(wrong)
    return f"{len(ABUSES)} requests; {well(server)}"


def _read_allowed(connection: Connection, abuse: Abuse) -> None:
    """Read the response: one of those allowed, an error in the one shape, the end where it is announced."""
    try:
        response = connection.read()
    except NoAnswer as error:
        clean_end(error)
        # A reset may overtake the response to a client that was still sending.
        if None not in abuse.statuses and "broke" not in str(error):
            raise AssertionError("no answer") from error
        return
    allowed = [status for status in abuse.statuses if status is not None]
    assert response.status in allowed, f"{response.status} instead of {allowed}"
    if response.status >= 400:
        is_error(response, response.status)
    if response.closes:
        assert connection.ended(seconds=8), "the connection stays open after Connection: close"


def smuggled(bed: Bed) -> str:
    """A second request hidden in the body of a first one with two lengths is never answered."""
    server = bed.shared()
    hidden = b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for lengths in (SIZE + CHUNKED, CHUNKED + SIZE):
        with Connection(server.port, seconds=8) as connection:
            connection.send(POST + lengths + b"\r\n0\r\n\r\n" + hidden)
            statuses = []
            try:
                while True:
                    statuses.append(connection.read().status)
            except NoAnswer:
                pass
            assert 200 not in statuses, f"answered {statuses}"
    return f"never answered; {well(server)}"


def body_over_the_cap(bed: Bed) -> str:
    server = bed.shared()
    before = server.rss()
    head = message("POST", "/predict", headers={"Content-Type": "application/json", "Content-Length": "3000000"})
    response = answer_of(head, server, seconds=5)
    assert response is not None, "no answer to a declared length over the cap"
    is_error(response, 413)
    chunks = (b"10000\r\n" + b" " * 65536 + b"\r\n") * 160
    chunked = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    late = answer_of(message("POST", "/predict", headers=chunked) + chunks, server, seconds=10)
    if late is not None:
        is_error(late, 413)
    return f"413 before the body, and after the cap; {well(server, rss_growth=40 << 20, rss_before=before)}"


def answers_stay_apart(bed: Bed) -> str:
    """After every refusal that keeps the connection, the next request on it is answered as itself."""
    server = bed.shared()
    wanted = server.predict(f"a good {CANARY} film").json()
    kept = 0
    refusals = [
        message("POST", "/predict", b"{"),
        message("POST", "/nothing", BODY),
        message("PUT", "/predict", BODY),
        message("POST", "/predict", BODY, json_body=False),
        message("POST", "/predict", b"[" * 5_000),
    ]
    for refused in refusals:
        with Connection(server.port) as connection:
            first = connection.ask(refused)
            is_error(first, 400, 404, 405, 415, 422)
            if not first.closes:
                kept += 1
                second = connection.ask(PREDICTED)
                assert second.status == 200, second
                assert second.json() == wanted, "another request's answer"
    return f"{kept} of {len(refusals)} connections were kept; {well(server)}"


FAULTS = [
    Fault("broken-framing", f"{len(ABUSES)} kinds: a documented status in the one shape, or the end", framing),
    Fault("smuggled-request", "two lengths: refused, and what is hidden is not read", smuggled),
    Fault("body-over-the-cap", "413, declared or not, and no memory", body_over_the_cap),
    Fault("request-after-a-refusal", "answered as itself", answers_stay_apart),
]
