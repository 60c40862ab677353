"""Look up a name that is no folder: what was meant, and whether the Hugging Face hub has it, within seconds.

The hub's own client tries a name for up to a minute before it says that there is no network. Whoever mistypes a folder
would wait for that, so a name is looked up once, and briefly, before anything asks the client. Nothing here needs
torch, transformers or datasets.
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
_NOT_THERE = {401, 403, 404}
_REQUEST_SECONDS = 3.0
# Looking up a name server is not bound by the time of a request, and may take half a minute.
_PATIENCE_SECONDS = 5.0


class _Answer(NamedTuple):
    """What the hub has said of a repository: an HTTP status, or None and why nobody answered."""

    status: int | None
    reason: str


def looks_local(name: str) -> bool:
    """Return whether a name can only be meant as a path: a hub id is a name, or two with a slash between them."""
    path = name.partition(":")[0]
    return path.startswith(".") or not _HUB_ID.fullmatch(path)


def check_name(name: str, kind: Kind, *, what: str | None = None) -> None:
    """Refuse a name that is neither here nor on the hub; a name in the hub's cache is fine without a network.

    Args:
        name: what stands for a checkpoint or a data set.
        kind: of the two.
        what: what the name was given as, such as `--tokenizer`; None leaves it out.

    Raises:
        CheckpointError, DataError: saying what is similar nearby, and why the hub does not have it.
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
        if not is_offline() and _ask(repository, kind).status is None:
            work_offline()
        return
    near = near or "name a folder that is there, or check the name and the network"
    if is_offline():
        raise error(f"{missing} here, nor one in the hub's cache, and HF_HUB_OFFLINE forbids to ask the hub; {near}")
    answer = _ask(repository, kind)
    if answer.status is None:
        raise error(f"{missing} here, and the hub cannot be reached to look for it ({answer.reason}); {near}")
    if answer.status in _NOT_THERE:
        raise error(f"{missing} here, and the hub has none of that name (a private one needs HF_TOKEN); {near}")


def similar(name: str) -> str:
    """Return "did you mean X?" for the folder or file beside a missing path that is spelt most alike, or nothing."""
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
    """Return whether the hub's client is told to use nothing but its cache."""
    if find_spec("huggingface_hub") is None:
        return True
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def work_offline() -> None:
    """Let the hub's client use its cache at once, instead of trying for a minute what cannot be reached."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def cached_file(name: str, file: str) -> Path | None:
    """Return where the hub's cache has a file of a model, or None."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file)
    except ValueError:  # no hub id
        return None
    return Path(found) if isinstance(found, str) else None


def _is_cached(repository: str, kind: Kind) -> bool:
    if find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import constants

    parts = repository.replace("/", "--")
    if (Path(constants.HF_HUB_CACHE) / f"{kind}s--{parts}").is_dir():
        return True
    if kind == "model":
        return False
    home = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
    return (Path(home) / repository.replace("/", "___").lower()).is_dir()


@cache
def _ask(repository: str, kind: Kind) -> _Answer:
    """Ask the hub once for a repository; status None says that nobody answered."""
    answers: list[_Answer] = []
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
