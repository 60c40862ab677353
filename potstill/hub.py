"""Check within seconds whether the Hugging Face hub has a model or data set, and suggest what a wrong path meant.

The hub's own client retries for 28 to 68 s before it reports that there is no network (docs/log.md, "Distil"), and so
would a mistyped folder. A name is therefore looked up here, once and briefly, before the client is asked. Nothing here
needs torch, transformers or datasets.
"""

import os
import re
import threading
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from potstill.errors import CheckpointError, DataError, UsageError
from potstill.messages import nearest_name

Kind = Literal["model", "dataset"]
_ERRORS: dict[str, type[UsageError]] = {"model": CheckpointError, "dataset": DataError}
_WORDS = {"model": "checkpoint folder", "dataset": "file or folder"}
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".onnx", ".safetensors", ".bin")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
# For a name that does not exist the hub answers 401 to anonymous clients, so as not to reveal private repositories.
_NOT_THERE = {401, 403, 404}
_REQUEST_SECONDS = 3.0
# Seconds for the whole look-up: resolving a host name is outside the request's timeout, and may take half a minute.
_PATIENCE_SECONDS = 5.0


class _Answer(NamedTuple):
    """The hub's answer about a repository: an HTTP status, or None and the reason why there is none."""

    status: int | None
    reason: str


def looks_local(name: str) -> bool:
    """Return whether a name cannot be a hub id, which is one name or two with a slash between them."""
    # A data set's configuration stands behind a colon.
    path = name.partition(":")[0]
    return path.startswith(".") or not _HUB_ID.fullmatch(path)


def check_name(name: str, kind: Kind, *, what: str | None = None) -> None:
    """Raise if a name is neither a local path nor on the hub; without a network, a name in the hub's cache passes.

    Args:
        name: a path or hub id.
        kind: what it should be.
        what: the option that it was given by, such as `--tokenizer`, for messages.

    Raises:
        CheckpointError, DataError: by `kind`, with a similar path nearby and the reason why the hub does not have it.
    """
    path = Path(name).expanduser()
    if path.exists():
        return
    error, near = _ERRORS[kind], similar(name)
    missing = f"{f'{what}: ' if what else ''}there is no {_WORDS[kind]} {name}"
    if looks_local(name) or path.suffix in _SUFFIXES:
        raise error(f"{missing}; {near or 'name one that is there, or a hub id'}")
    repository = name.partition(":")[0] if kind == "dataset" else name
    if _is_cached(repository, kind):
        # Without this the client would try to refresh what is cached, and wait for the network that is not there.
        if not is_offline() and _ask(repository, kind).status is None:
            work_offline()
        return
    near = near or "name a folder that is there, or check the name and the network"
    if find_spec("huggingface_hub") is None:
        raise error(f"{missing} here, and to look for it on the hub huggingface_hub must be installed; {near}")
    if is_offline():
        raise error(f"{missing} here, nor one in the hub's cache, and HF_HUB_OFFLINE forbids to ask the hub; {near}")
    answer = _ask(repository, kind)
    if answer.status is None:
        raise error(f"{missing} here, and the hub cannot be reached to look for it ({answer.reason}); {near}")
    if answer.status in _NOT_THERE:
        raise error(f"{missing} here, and the hub has none of that name (a private one needs HF_TOKEN); {near}")


def similar(name: str) -> str:
    """Return "did you mean X?" for the entry beside a missing path that is spelt most like it, or an empty string."""
    path = Path(name).expanduser()
    parts = [path, *path.parents]
    # The first part of the path that is not there is the one that is misspelt.
    missing = next((part for part, above in pairwise(parts) if above.is_dir()), None)
    if missing is None or missing.exists():
        return ""
    try:
        beside = [entry.name for entry in missing.parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return ""
    found = nearest_name(missing.name, beside, cutoff=0.6)
    if found is None:
        return ""
    meant = missing.with_name(found)
    whole = meant / path.relative_to(missing)
    return f"did you mean {whole if whole.exists() else meant}?"


def is_offline() -> bool:
    """Return whether the hub's client is set to use its cache alone (HF_HUB_OFFLINE), or is not installed."""
    if find_spec("huggingface_hub") is None:  # no client, so nothing can be asked
        return True
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def work_offline() -> None:
    """Set the hub's client to use its cache alone in this process, so that it does not wait for the network."""
    from huggingface_hub import constants

    # The variables for what is imported later and for child processes; the constant was read on import.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def cached_file(name: str, file: str) -> Path | None:
    """Return the path of a model's file in the hub's cache, or None."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file)
    except ValueError:  # no hub id
        return None
    # It may also be a marker for a file that is known not to exist.
    return Path(found) if isinstance(found, str) else None


def _is_cached(repository: str, kind: Kind) -> bool:
    """Return whether the hub's cache, or that of `datasets`, has anything of a repository."""
    if find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import constants

    parts = repository.replace("/", "--")
    if (Path(constants.HF_HUB_CACHE) / f"{kind}s--{parts}").is_dir():
        return True
    if kind == "model":
        return False
    # `datasets` keeps prepared tables in a cache of its own, under other names.
    home = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
    return (Path(home) / repository.replace("/", "___").lower()).is_dir()


@cache
def _ask(repository: str, kind: Kind) -> _Answer:
    """Ask the hub for a repository, once per process; at most `_PATIENCE_SECONDS`."""
    answers: list[_Answer] = []
    # A daemon, because a name server that does not answer would otherwise hold the process's end up.
    asking = threading.Thread(target=lambda: answers.append(_request(repository, kind)), daemon=True)
    asking.start()
    asking.join(_PATIENCE_SECONDS)
    return answers[0] if answers else _Answer(None, f"no answer within {_PATIENCE_SECONDS:.0f} s")


def _request(repository: str, kind: Kind) -> _Answer:
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    url = f"{constants.ENDPOINT}/api/{kind}s/{repository}"
    try:
        response = get_session().head(url, headers=build_hf_headers(), timeout=_REQUEST_SECONDS, follow_redirects=True)
    except Exception as error:  # the client's kinds of errors have changed with its versions
        return _Answer(None, f"{constants.ENDPOINT}: {' '.join(str(error).split())[:120] or type(error).__name__}")
    return _Answer(response.status_code, "")
