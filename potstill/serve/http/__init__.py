"""The HTTP application in front of the engine: routes, request bodies, errors, metrics and two pages.

`app` has the routes and middleware; `predict`, `openai` and `oip` are the three interfaces; `request` reads and checks
bodies; `protocol` is the layer of HTTP/1.1 below. It needs prometheus_client, of the `serve` extra, which
`potstill.serve` itself does not load.
"""

from potstill.extras import needing

with needing("serve"):
    from potstill.serve.http.app import create_app

__all__ = ["create_app"]
