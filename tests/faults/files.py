"""Bundles that are not what was exported: every change is refused before a parser sees it, or changes nothing."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from potstill.errors import PotstillError
from potstill.serve import Encoder
from tests.faults.bed import PREDICTED, Bed, Fault, good_clients, refused_to_start, well
from tests.faults.rawhttp import ask
from tests.faults.served import Ended

MANIFEST = "potstill.json"
REGION = 4096
"""Bytes of a region in the long run; files below 64 KiB are flipped byte by byte."""


def flips(bed: Bed) -> str:
    """One changed byte, anywhere, in any file but the manifest: not loaded."""
    bundle = bed.copy_of_bundle()
    draw, tried = random.Random(5), Counter[str]()
    for file in _files(bundle):
        if file.name == MANIFEST:
            continue
        content = file.read_bytes()
        for place in _places(bed, len(content), draw):
            with file.open("r+b") as stream:
                stream.seek(place)
                stream.write(bytes([content[place] ^ (1 << draw.randrange(8))]))
            assert _refused(bundle), f"byte {place} of {file.relative_to(bundle)} was changed, and it was loaded"
            with file.open("r+b") as stream:
                stream.seek(place)
                stream.write(content[place : place + 1])
            tried[file.name] += 1
    assert not _refused(bundle), "the bundle, put right again, is refused"
    return f"{sum(tried.values())} of {sum(tried.values())} refused: {dict(tried)}"


def _places(bed: Bed, size: int, draw: random.Random) -> list[int]:
    if not bed.long:
        return [0, size - 1, *(draw.randrange(size) for _ in range(12))]
    if size < 16 * REGION:
        return list(range(0, size, max(1, size // 3000)))
    regions = range(0, size, max(REGION, size // 2000 // REGION * REGION))
    return [min(start + draw.randrange(REGION), size - 1) for start in regions]


def _refused(bundle: Path) -> bool:
    try:
        Encoder(bundle, threads=1)
    except PotstillError:
        return True
    return False


def _files(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def manifest_flips(bed: Bed) -> str:
    """One changed byte in the manifest: our own error, or a manifest that says the same."""
    bundle = bed.copy_of_bundle()
    file, wanted = bundle / MANIFEST, Encoder(bundle, threads=1).manifest
    content, draw, seen = file.read_bytes(), random.Random(6), Counter[str]()
    places = range(len(content)) if bed.long else [draw.randrange(len(content)) for _ in range(60)]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        file.write_bytes(changed)
        try:
            found = Encoder(bundle, threads=1).manifest
        except PotstillError as error:
            seen[type(error).__name__] += 1
            continue
        if found != wanted:
            raise AssertionError(f"byte {place} changed what the manifest says")
        seen["says the same"] += 1
    file.write_bytes(content)
    return f"{len(places)} flips: {dict(seen)}"


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _extend(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def _remove(file: Path) -> None:
    file.unlink()


def _as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _as_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _as_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def _as_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def _as_random(file: Path) -> None:
    file.write_bytes(random.Random(7).randbytes(file.stat().st_size))


DAMAGES: tuple[Callable[[Path], None], ...] = (
    _truncate,
    _empty,
    _extend,
    _remove,
    _as_folder,
    _as_pipe,
    _as_loop,
    _as_device,
    _as_random,
)


def damages(bed: Bed) -> str:
    """Files cut, grown, gone or of another kind: the command ends with one line and exit code 1 or 2."""
    seen: Counter[int] = Counter()
    names = [file.relative_to(bed.bundle) for file in _files(bed.bundle) if "int8" not in file.name]
    for name in names if bed.long else [Path(MANIFEST), Path("onnx/model.onnx")]:
        for damage in DAMAGES if bed.long else (_truncate, _as_pipe, _as_device):
            bundle = bed.copy_of_bundle()
            damage(bundle / name)
            what = f"{name} {damage.__name__.strip('_')}"
            server = bed.start(bundle=bundle)
            try:
                server.wait_until_ready(seconds=15)
                raise AssertionError(f"{what}: it is served")
            except Ended as error:
                refused_to_start(error, 1, 2, 3)
                seen[error.code] += 1
            except TimeoutError as error:
                raise AssertionError(f"{what}: neither served nor refused within 15 s") from error
            finally:
                server.kill()
    return f"{sum(seen.values())} refused, exit codes {dict(seen)}"


def swapped(bed: Bed) -> str:
    """Two files in each other's place, each of them genuine."""
    bundle = bed.copy_of_bundle()
    first, second = bundle / "onnx/model.onnx", bundle / "onnx/model_int8.onnx"
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    assert _refused(bundle), "the int8 file was taken for the fp32 one"
    return "refused"


def linked_out(bed: Bed) -> str:
    """Files that lie outside of the bundle, by every kind of link: what is loaded has the hash of the manifest."""
    seen = []
    for kind in ("leaf", "parent", "hard"):
        bundle, outside = bed.copy_of_bundle(), bed.folder()
        model = bundle / "onnx/model.onnx"
        shutil.copy(model, outside / "model.onnx")
        _extend(outside / "model.onnx")
        if kind == "parent":
            shutil.copy(bundle / "onnx/model_int8.onnx", outside)
            shutil.rmtree(bundle / "onnx")
            (bundle / "onnx").symlink_to(outside)
        else:
            model.unlink()
            if kind == "leaf":
                model.symlink_to(outside / "model.onnx")
            else:
                model.hardlink_to(outside / "model.onnx")
        assert _refused(bundle), f"another file was loaded through a link ({kind})"
        seen.append(kind)
    return f"refused: {', '.join(seen)}"


def named_out(bed: Bed) -> str:
    """A manifest that names files outside of its folder is refused, whatever their hash."""
    names = ["../model.onnx", "/etc/hostname", "onnx/../../model.onnx", "onnx/./../../x", "..\\model.onnx", "", "onnx"]
    for name in names:
        bundle = bed.copy_of_bundle()
        file = bundle / MANIFEST
        shutil.copy(bundle / "onnx/model.onnx", bundle.parent / "model.onnx")
        text = file.read_text()
        assert '"onnx/model.onnx"' in text
        file.write_text(text.replace('"onnx/model.onnx"', f'"{name.replace(chr(92), chr(92) * 2)}"'))
        assert _refused(bundle), f"a file named {name!r} was loaded"
    return f"{len(names)} names refused"


def replaced_while_serving(bed: Bed) -> str:
    """The files change under a running server: it goes on answering as before."""
    bundle = bed.copy_of_bundle()
    with bed.server(bundle=bundle) as (server, _):
        wanted = server.predict().json()
        with good_clients(server) as good:
            for file in _files(bundle):
                other = file.with_name(f"{file.name}.new")
                other.write_bytes(b"other")
                other.replace(file)
                time.sleep(0.05)
        assert good.answered == good.sent, good.failures[:3]
        assert server.predict().json() == wanted, "other answers"
        return f"{good}, the same answers; {well(server)}"


def overwritten_while_serving(bed: Bed) -> str:
    """As before, but written in place: the pages of a mapped file would go with it."""
    bundle = bed.copy_of_bundle()
    with bed.server(bundle=bundle) as (server, _):
        wanted = server.predict().json()
        with good_clients(server) as good:
            for file in _files(bundle):
                os.truncate(file, 0)
                time.sleep(0.05)
            shutil.rmtree(bundle)
            time.sleep(0.2)
        assert server.process.poll() != -signal.SIGBUS, "SIGBUS: the file was mapped"
        assert good.answered == good.sent, good.failures[:3]
        assert server.predict().json() == wanted, "other answers"
        return f"{good}, the same answers; {well(server)}"


def replaced_then_restarted(bed: Bed) -> str:
    """A model that was replaced is not served by the next start."""
    bundle = bed.copy_of_bundle()
    with bed.server(bundle=bundle) as (server, _):
        assert ask(server.port, PREDICTED).status == 200
        _extend(bundle / "onnx/model.onnx")
        assert server.terminate() == 0
    again = bed.start(bundle=bundle)
    try:
        again.wait_until_ready(seconds=20)
        raise AssertionError("a changed model is served")
    except Ended as error:
        refused_to_start(error, 1)
    finally:
        again.kill()
    return "exit 1"


FAULTS = [
    Fault("byte-flipped", "every file but the manifest: refused before it is parsed", flips),
    Fault("manifest-flipped", "our own error", manifest_flips),
    Fault(
        "files-damaged", "cut, grown, gone, folder, pipe, device, loop: exit code and one line", damages, quick=False
    ),
    Fault("files-swapped", "refused", swapped),
    Fault("files-linked", "symbolic, parent, hard: the hash decides", linked_out),
    Fault("manifest-names-outside", "refused", named_out),
    Fault("model-replaced", "a running server answers as before", replaced_while_serving),
    Fault("model-truncated", "a running server answers as before", overwritten_while_serving, quick=False),
    Fault("model-replaced-restart", "the next start ends with 1", replaced_then_restarted, quick=False),
]
