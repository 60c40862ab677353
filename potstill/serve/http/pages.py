"""The two pages and their files: plain HTML, CSS and JavaScript from this package, and nothing from anywhere else."""

from importlib.resources import files

from potstill.serve.http.exchange import Reply

_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
_PATHS = {"index.html": "/", "docs.html": "/docs"}
# Scripts and styles are files of this origin: nothing inline runs, nothing is loaded from or sent to elsewhere.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FIELDS = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    # Asked for again after an update: an old script with a new page would be a riddle.
    (b"cache-control", b"no-cache"),
]


def pages() -> dict[str, Reply]:
    """Return what is answered, by path."""
    found = {}
    for file in files("potstill.serve.http").joinpath("static").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            path = _PATHS.get(file.name, f"/static/{file.name}")
            found[path] = Reply(200, file.read_bytes(), [(b"content-type", kind), *_FIELDS])
    return found
