"""Requests from the grammar of RFC 9110 and RFC 9112, with parts left out, doubled, reordered, changed and cut.

A request is made as the grammar says, as a list of parts (the request line, each field line, the empty line, the body),
each of them a list of pieces (a method, a space, a target, ...). Damage is then done to parts and pieces, so that what
comes out is nearly right: `HTTP/1.0` without Host but with a body is one part left out, where flipped bytes would need
dozens of lucky ones. Input N of a seed is always the same bytes, whatever was sent before it.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

Part = list[bytes]

LIVE = "/health/live"
CRLF, SP = b"\r\n", b" "
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT")
ODD_METHODS = (
    "get",
    "BREW",
    "M-SEARCH",
    "PRI",
    "SOURCE",
    "DESCRIBE",
    "SETUP",
    "!#$%&'*+-.^_`|~0",
    "G" * 300,
    "Post",
    "QUERY",
)
VERSIONS = (
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/0.9",
    "HTTP/2.0",
    "HTTP/1.2",
    "HTTP/2",
    "HTTP/9.9",
    "HTTP/1.",
    "http/1.1",
    "HTTP/01.1",
    "HTTP/1.10",
    "HTTPS/1.1",
    "ICE/1.0",
    "RTSP/1.0",
    "",
)
HOSTS = ("localhost", "localhost:8000", "127.0.0.1", "[::1]:80", "", "a.b-c.example:1", "xn--80ak6aa92e.example")
ODD_HOSTS = ("a/b", "a@b", "a b", "a,b", "a:b:c", "[::1", "\x7f", "h?q", "h#f", "h" * 300)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAMES = (
    b"\0\0\0\4\0\0\0\0\0",
    b"\0\0\x0c\4\0\0\0\0\0\0\3\0\0\0d\0\4\0\0\xff\xff",
    b"\0\0\x04\x08\0\0\0\0\0\0\0\xff\xff",
    b"\0\0\x08\6\0\0\0\0\0abcdefgh",
)
"""HTTP/2 frames: SETTINGS, empty and not, WINDOW_UPDATE, PING."""
LENGTHS = (
    "0",
    "1",
    "5",
    "00",
    "007",
    "+1",
    "-1",
    " 1",
    "1,1",
    "1, 1",
    "0x1",
    "1e1",
    "1.0",
    "",
    "99999999999999999999",
    "2000001",
    "4294967296",
    "18446744073709551616",
    "\u0661",
    "1 1",
)
CODINGS = (
    "chunked",
    "Chunked",
    "identity",
    "gzip",
    "gzip, chunked",
    "chunked, gzip",
    "chunked, chunked",
    "xchunked",
    "chunked;q=1",
    ",chunked",
    "chunked,",
    "\x0bchunked",
    "",
)
CONNECTIONS = (
    "close",
    "keep-alive",
    "Close",
    "Keep-Alive",
    "close, keep-alive",
    "keep-alive, close",
    "upgrade",
    "Upgrade, HTTP2-Settings",
    "host",
    "content-length",
    ",",
    "",
    "te, close",
)
FIELDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Accept", ("*/*", "application/json;q=0.5, text/html", "", ",")),
    ("Accept-Encoding", ("gzip, br;q=0", "identity", "*;q=0")),
    ("Authorization", ("Bearer x", "Basic eDp5", 'Digest username="a, b"')),
    ("Content-Type", ("application/json", "application/json; charset=utf-8", "text/plain", "multipart/form-data")),
    ("Content-Encoding", ("identity", "gzip", "br")),
    ("Cookie", ("a=b; c=d", "=")),
    ("Date", ("Sun, 06 Nov 1994 08:49:37 GMT",)),
    ("Expect", ("100-continue", "100-Continue", "200-ok", "", "100-continue, 100-continue")),
    ("Forwarded", ("for=192.0.2.60;proto=http",)),
    ("If-Match", ('"xyzzy", W/"r2d2"', "*")),
    ("If-Modified-Since", ("Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "soon")),
    ("Inference-Header-Content-Length", ("0", "5", "-1", "999")),
    ("Keep-Alive", ("timeout=5, max=1000",)),
    ("Max-Forwards", ("0", "-1")),
    ("Origin", ("null", "https://other.example")),
    ("Proxy-Connection", ("keep-alive",)),
    ("Range", ("bytes=0-0,-1", "bytes=" + "0-," * 50, "lines=1-2")),
    ("TE", ("trailers, deflate;q=0.5", "chunked")),
    ("Trailer", ("X-Checksum", "Content-Length", "")),
    ("Upgrade", ("h2c", "websocket", "TLS/1.0, HTTP/2.0", "")),
    ("HTTP2-Settings", ("AAMAAABkAARAAAAAAAIAAAAA",)),
    ("Via", ("1.0 fred, 1.1 p.example.net (a \\(comment\\))",)),
    ("X-Request-Timeout-Ms", ("500", "60000", "nan", "-1")),
    ("X-Request-Id", ("a", "x" * 200)),
    ("!#$%&'*+-.^_`|~", ("v",)),
    ("X-Obs-Text", ("caf\xe9 \xff\x80",)),
    ("X-Tab", ("a\tb \t c",)),
    ("X-Long", ("y" * 3000,)),
)
BODIES = (
    b'{"inputs": "a good film"}',
    b'{"inputs": ["a", "b"]}',
    b"",
    b"{}",
    b"x",
    b"[" * 40,
    b"\0\xff\xfe",
    b"\r\n",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"1\r\nx\r\n0\r\n\r\n",
    b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
)
"""What a reader that loses its place would take for something else is among them."""
EXTENSIONS = ("", ";a", ";a=b", ';a="b c"', ";a=b;c", " ;a", ";", ";a=", ";\xff", ";" + "e" * 400)
SPACES = (b"", b" ", b"\t", b"  ", b" \t ")
LINE_ENDS = (b"\n", b"\r", b"\r\r\n", b"\n\r", b"", b"\r\n\r\n", b"\0\r\n", b"\x0b\r\n")
BYTES = (
    b"\0",
    b"\x7f",
    b"\xff",
    b"\r",
    b"\n",
    b" ",
    b"\t",
    b":",
    b",",
    b"%",
    b"/",
    b"#",
    b"?",
    b'"',
    b"\\",
    b"0",
    b"A",
)


@dataclass(frozen=True, slots=True)
class Input:
    """What is sent on one connection, and how.

    Attributes:
        data: one or several requests, or what is left of them.
        cuts: where `data` is cut into several sends.
        patient: whether the client then neither sends nor closes, so that the server's own deadlines must end it.
        fresh: whether it wants a connection of its own.
    """

    number: int
    data: bytes
    cuts: tuple[int, ...]
    patient: bool
    fresh: bool


class Grammar:
    """Makes the inputs of one seed.

    Args:
        seed: the same one gives the same inputs.
        paths: targets that the server knows.
    """

    def __init__(self, seed: int, paths: list[str]) -> None:
        self._seed = seed
        self._paths = [LIVE, "/predict", *paths]
        self._draw = random.Random()

    def input(self, number: int) -> Input:
        """Return input `number`, which depends on nothing but the seed."""
        self._draw = draw = random.Random(f"{self._seed}/{number}")
        if draw.random() < 0.02:
            data = self._http_2()
        else:
            requests = [self._request() for _ in range(draw.choices((1, 2, 3, 6), (60, 20, 15, 5))[0])]
            damage = draw.choices((0, 1, 2, 4), (25, 45, 20, 10))[0]
            for _ in range(damage):
                self._damage(draw.choice(requests))
            data = b"".join(piece for request in requests for part in request for piece in part)
            if damage and draw.random() < 0.15:
                data = data[: draw.randrange(len(data) + 1)]
            elif draw.random() < 0.05:
                data = draw.choice((CRLF, CRLF * 2, b"\n", b" ", b"\0")) + data
            elif draw.random() < 0.03:
                data += draw.choice((CRLF, b"x", b"\0", b"GET", b"GET / HTTP/1.0\r\n"))
        cuts = ()
        if draw.random() < 0.15 and len(data) > 1:
            cuts = tuple(sorted({draw.randrange(1, len(data)) for _ in range(draw.randint(1, 3))}))
        return Input(number, data, cuts, patient=draw.random() < 0.005, fresh=draw.random() < 0.3)

    def _http_2(self) -> bytes:
        draw = self._draw
        frames = b"".join(draw.choice(FRAMES) for _ in range(draw.randrange(4)))
        data = draw.choice((PREFACE, PREFACE, PREFACE[: draw.randrange(len(PREFACE))], b"")) + frames
        return data or PREFACE

    def _request(self) -> list[Part]:
        """Return the parts of a request as the grammar says; its field values may still be nonsense."""
        draw = self._draw
        method = (
            draw.choices(METHODS, (35, 35, 8, 8, 3, 3, 3, 2, 3))[0]
            if draw.random() < 0.95
            else draw.choice(ODD_METHODS)
        )
        version = draw.choices(VERSIONS[:2], (65, 35))[0] if draw.random() < 0.93 else draw.choice(VERSIONS[2:])
        line = [method.encode(), SP, self._target(method), SP, version.encode(), CRLF]
        if draw.random() < 0.01:
            return [[b"GET", SP, self._target("GET"), CRLF]]  # HTTP/0.9
        fields = [self._field("Host", draw.choice(HOSTS) if draw.random() < 0.96 else draw.choice(ODD_HOSTS))]
        if version == "HTTP/1.0" and draw.random() < 0.5:
            fields = []  # HTTP/1.0 has no Host
        if draw.random() < 0.3:
            fields.append(
                self._field("Connection", draw.choice(CONNECTIONS[:4] if draw.random() < 0.7 else CONNECTIONS))
            )
        for _ in range(draw.choices((0, 1, 2, 5), (40, 35, 20, 5))[0]):
            name, values = draw.choice(FIELDS)
            fields.append(self._field(name, draw.choice(values)))
        framing, body = self._body(method, version)
        fields += framing
        if draw.random() < 0.5:
            draw.shuffle(fields)
        return [line, *fields, [CRLF], *body]

    def _target(self, method: str) -> bytes:
        draw = self._draw
        path = draw.choice(self._paths) if draw.random() < 0.6 else LIVE
        if method == "POST" and draw.random() < 0.6:
            path = "/predict"
        if draw.random() < 0.15:
            path += draw.choice(("?", "?a=b&c", "?%20", "/%2e%2e/", ";p=1", "/" * 20, "?" + "q" * 500, "#f", "%zz"))
        form = draw.random()
        if method == "CONNECT" and form < 0.8:
            return draw.choice((b"example.org:443", b"[::1]:80", b"example.org", b":80"))
        if method == "OPTIONS" and form < 0.3:
            return b"*"
        if form < 0.9:
            return path.encode()
        if form < 0.97:
            return (
                b"http://" + draw.choice((b"localhost", b"other.example:8080", b"u:p@h", b"", b"[::1]")) + path.encode()
            )
        return draw.choice(
            (b"*", b"x", b"ftp://a/b", b"//", b"http:", b"\xff", b"mailto:a@b", b"?", b"/" + b"a" * 5000)
        )

    def _field(self, name: str, value: str) -> Part:
        draw = self._draw
        encoded = value.encode("latin-1", "replace")
        if encoded and draw.random() < 0.02:  # obs-fold
            encoded = encoded[:1] + CRLF + draw.choice(SPACES[1:]) + encoded[1:]
        before, after = (b" ", b"") if draw.random() < 0.85 else (draw.choice(SPACES), draw.choice(SPACES))
        cased = {0: name.lower(), 1: name.upper()}.get(draw.randrange(8), name)
        return [cased.encode("latin-1"), b":", before, encoded, after, CRLF]

    def _body(self, method: str, version: str) -> tuple[list[Part], list[Part]]:
        """Return the fields that frame a body, and the body."""
        draw = self._draw
        kind = draw.random()
        if kind < (0.15 if method in {"POST", "PUT", "PATCH"} else 0.55):
            return [], []
        body = draw.choice(BODIES[:3]) if draw.random() < 0.5 else draw.choice(BODIES) + draw.choice(BODIES)
        json_type = [self._field("Content-Type", "application/json")] if draw.random() < 0.5 else []
        if version != "HTTP/1.1" or draw.random() < 0.6:
            length = str(len(body)) if draw.random() < 0.9 else draw.choice(LENGTHS)
            return [*json_type, self._field("Content-Length", length)], [[body]]
        coding = "chunked" if draw.random() < 0.9 else draw.choice(CODINGS)
        return [*json_type, self._field("Transfer-Encoding", coding)], self._chunks(body)

    def _chunks(self, body: bytes) -> list[Part]:
        draw, parts, at = self._draw, list[Part](), 0
        while at < len(body):
            size = draw.randint(1, len(body) - at)
            digits = f"{size:x}" if draw.random() < 0.8 else f"{size:03X}"
            parts.append([digits.encode(), self._extension(), CRLF, body[at : at + size], CRLF])
            at += size
        parts.append([b"0" if draw.random() < 0.9 else b"000", self._extension(), CRLF])
        for _ in range(draw.choices((0, 1, 2), (80, 15, 5))[0]):
            name, values = draw.choice(
                (*FIELDS, ("Content-Length", ("5",)), ("Transfer-Encoding", ("chunked",)), ("Host", ("x",)))
            )
            parts.append(self._field(name, draw.choice(values)))
        return [*parts, [CRLF]]

    def _extension(self) -> bytes:
        return self._draw.choice(EXTENSIONS).encode("latin-1") if self._draw.random() < 0.1 else b""

    def _damage(self, parts: list[Part]) -> None:
        """Do one thing to a request that the grammar does not allow, or only perhaps."""
        draw = self._draw
        ways: list[tuple[int, Callable[[list[Part]], None]]] = [
            (20, self._leave_out),
            (12, self._double),
            (12, self._reorder),
            (6, self._cut),
            (25, self._change_piece),
            (15, self._add_framing),
            (10, self._change_bytes),
        ]
        draw.choices([way for _, way in ways], [weight for weight, _ in ways])[0](parts)

    def _leave_out(self, parts: list[Part]) -> None:
        at = self._draw.randrange(len(parts))
        if self._draw.random() < 0.6:
            parts[at] = []
        elif parts[at]:
            del parts[at][self._draw.randrange(len(parts[at]))]

    def _double(self, parts: list[Part]) -> None:
        at = self._draw.randrange(len(parts))
        if self._draw.random() < 0.6:
            parts.insert(self._draw.randrange(len(parts) + 1), list(parts[at]))
        elif parts[at]:
            place = self._draw.randrange(len(parts[at]))
            parts[at].insert(place, parts[at][place])

    def _reorder(self, parts: list[Part]) -> None:
        if self._draw.random() < 0.6:
            first, second = (self._draw.randrange(len(parts)) for _ in range(2))
            parts[first], parts[second] = parts[second], parts[first]
        else:
            self._draw.shuffle(parts[self._draw.randrange(len(parts))])

    def _cut(self, parts: list[Part]) -> None:
        """End a part or the whole request early; what follows is then read as its rest."""
        at = self._draw.randrange(len(parts))
        if self._draw.random() < 0.5:
            del parts[at:]
            parts.append([])
        else:
            del parts[at][self._draw.randrange(len(parts[at]) + 1) :]

    def _change_piece(self, parts: list[Part]) -> None:
        draw, part = self._draw, self._draw.choice(parts)
        if not part:
            return
        at = draw.randrange(len(part))
        piece = part[at]
        if piece == CRLF:
            part[at] = draw.choice(LINE_ENDS)
        elif piece.strip(b" \t") == b"":
            part[at] = draw.choice((*SPACES, b"\x0b", b"\xa0"))
        elif piece == b":":
            part[at] = draw.choice((b" :", b"", b"::", b"=", b":\0"))
        elif piece.startswith(b"HTTP/"):
            part[at] = draw.choice(VERSIONS).encode()
        else:
            part[at] = draw.choice(
                (
                    piece.swapcase(),
                    piece + draw.choice(BYTES),
                    draw.choice(BYTES) + piece,
                    piece * 2,
                    piece[::-1],
                    b"",
                    b"0",
                )
            )

    def _add_framing(self, parts: list[Part]) -> None:
        """Add one more field that says where the body ends, what happens to the connection, or who is asked."""
        draw = self._draw
        name, values = draw.choice(
            (
                ("Content-Length", LENGTHS),
                ("Transfer-Encoding", CODINGS),
                ("Connection", CONNECTIONS),
                ("Host", HOSTS + ODD_HOSTS),
                ("Upgrade", ("h2c", "websocket")),
                ("Expect", ("100-continue", "x")),
            )
        )
        parts.insert(
            min(1, len(parts)) if draw.random() < 0.7 else draw.randrange(len(parts) + 1),
            self._field(name, draw.choice(values)),
        )

    def _change_bytes(self, parts: list[Part]) -> None:
        draw, part = self._draw, self._draw.choice(parts)
        if not part:
            return
        at = draw.randrange(len(part))
        piece = bytearray(part[at])
        place = draw.randrange(len(piece) + 1)
        if draw.random() < 0.5 and place < len(piece):
            piece[place] ^= 1 << draw.randrange(8)
        else:
            piece[place:place] = draw.choice(BYTES)
        part[at] = bytes(piece)


def good_body(data: bytes) -> bool:
    """Tell whether a body is one that `POST /predict` answers with 200."""
    try:
        content = json.loads(data)
    except ValueError:
        return False
    return content in ({"inputs": "a good film"}, {"inputs": ["a", "b"]})
