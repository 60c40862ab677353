"""The HTTP application in front of the engine: routes, bodies, errors, metrics and two pages.

It needs prometheus_client, of the `serve` extra; `potstill.serve` itself does not load it.
"""

from potstill.extras import needing

with needing("serve"):
    from potstill.serve.http.app import create_app

__all__ = ["create_app"]
