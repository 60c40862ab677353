"""A request's line and headers, read into an ASGI scope or refused as RFC 9110 and 9112 ask."""

import re
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from potstill.serve.http_errors import malformed
from potstill.serve.limits import Limits
from potstill.serve.wire.replies import refuse

Fields: TypeAlias = list[tuple[bytes, bytes]]
Scope: TypeAlias = dict[str, Any]

_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
RULED = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
"""Header fields that decide how to read on; each may come once."""


class Head:
    """The head of one request while it comes in, and what its framing means."""

    __slots__ = ("chunked", "expects_continue", "fields", "length", "limits", "ruled", "target")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.target = b""
        self.fields: Fields = []
        self.ruled: dict[bytes, bytes] = {}
        """Those fields that decide how to read on, by lower-case name."""
        self.length = 0
        """Bytes of the body, where it is not chunked."""
        self.chunked = False
        self.expects_continue = False

    def add_target(self, part: bytes) -> None:
        """Take a part of the target.

        Raises:
            RequestError: 414.
        """
        self.target += part
        if len(self.target) > self.limits.url_bytes:
            raise refuse(414, "too_large", f"the target is over {self.limits.url_bytes} bytes")

    def rule(self, name: bytes, value: bytes) -> bytes:
        """Keep one of the fields that decide how to read on, and return it without spaces around it.

        Raises:
            RequestError: 400 if it comes twice.
        """
        if name in self.ruled:
            raise malformed(f"the header {name.decode()} comes twice")
        self.ruled[name] = value = value.strip(b" \t")
        return value

    def finish(self, method: bytes, version: str) -> Scope:
        """Return the parts of an ASGI scope that the head decides.

        Raises:
            RequestError: 400 or 417.
        """
        if version not in {"1.1", "1.0"}:
            raise malformed("this server speaks HTTP/1.1 and HTTP/1.0")
        if method == b"CONNECT":
            raise malformed("this server is not a proxy; CONNECT is for proxies")
        self._read_framing(version)
        raw_path, query = self._split_target(method)
        path = raw_path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "scheme": "http",
            "method": method.decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self.fields,
        }

    def _read_framing(self, version: str) -> None:
        ruled = self.ruled
        host = ruled.get(b"host")
        if host is None:
            if version == "1.1":
                raise malformed("the header host is missing")
        elif not _HOST.fullmatch(host):
            raise malformed("the header host is not a name or an address")
        coding = ruled.get(b"transfer-encoding")
        if coding is not None and (version == "1.0" or coding.lower() != b"chunked"):
            raise malformed("the only Transfer-Encoding is chunked, and only in HTTP/1.1")
        self.chunked = coding is not None
        self.length = int(ruled.get(b"content-length", b"0"))  # the parser has seen to it that it is a number
        expected = ruled.get(b"expect")
        if expected is not None and version == "1.1":
            if expected.lower() != b"100-continue":
                raise refuse(417, "validation", "the only thing that can be expected is 100-continue")
            self.expects_continue = True

    def _split_target(self, method: bytes) -> tuple[bytes, bytes]:
        target = self.target
        if target[:1] != b"/":
            if target == b"*" and method == b"OPTIONS":
                return target, b""
            if target[:7].lower() != b"http://" and target[:8].lower() != b"https://":
                raise malformed("the target must be a path")
            try:
                parts = urlsplit(target)
            except ValueError:
                raise malformed("the target is not a URL") from None
            target = (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
        if not target.isascii() or b"#" in target:
            raise malformed("the target has a character that must be percent-encoded")
        path, _, query = target.partition(b"?")
        return path, query

    def without_upgrade(self, method: bytes, version: str) -> bytes:
        """Return the head again as if the client had not asked to change the protocol.

        RFC 9110, section 7.8: a server may ignore Upgrade. The parser does not: it stops at the head and takes the
        body for the other protocol. Java's client asks for h2c in its first request, body and all.
        """
        kept = [
            name + b": " + value for name, value in self.fields if name not in {b"upgrade", b"connection"}
        ]  # fmt: skip
        words = b",".join(value.lower() for name, value in self.fields if name == b"connection").split(b",")
        if b"close" in [word.strip() for word in words]:
            kept.append(b"connection: close")
        return b"\r\n".join([b"%b %b HTTP/%b" % (method, self.target, version.encode()), *kept, b"", b""])
