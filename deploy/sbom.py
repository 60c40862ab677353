"""Write what a server is made of, as a CycloneDX document: its Python packages and its models' files with their hashes.

python deploy/sbom.py PYTHON BUNDLE... --out sbom.cdx.json

PYTHON is that of the environment that serves; this one needs what requirements-supply.txt names.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SPEC = "1.6"
MANIFEST = "potstill.json"


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("python", help="of the environment that serves")
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    document = environment(given.python)
    models = [model(folder) for folder in given.bundles]
    add_models(document, models)
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    check(text)
    given.out.write_text(text, encoding="utf-8")
    packages = len(document["components"]) - len(models)
    sys.stdout.write(f"{given.out}: {packages} packages, {len(models)} models, valid CycloneDX {SPEC}\n")


def environment(python: str) -> dict[str, Any]:
    """Return the packages of an environment; `cyclonedx-py` asks its Python."""
    # Where a package was installed from may be a path or an address of this machine: --short-PURLs leaves it out.
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--short-PURLs"]
    done = subprocess.run(
        [*command, "--spec-version", SPEC, "--output-format", "JSON", python],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"cyclonedx-py failed:\n{done.stderr}")
    document: dict[str, Any] = json.loads(done.stdout)
    for component in document["components"]:
        references = component.get("externalReferences", [])
        kept = [one for one in references if not one["url"].startswith("file:")]
        component.pop("externalReferences", None)
        if kept:
            component["externalReferences"] = kept
    return document


def model(folder: Path) -> dict[str, Any]:
    """Return a bundle as a component, its files within it; refuse files that are not those of its manifest."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    files = {name: record["sha256"] for name, record in manifest["files"].items()}
    for name, expected in files.items():
        if sha256_of(folder / name) != expected:
            sys.exit(f"{folder / name} is not the file that {MANIFEST} names; export the bundle again")
    files[MANIFEST] = sha256_of(folder / MANIFEST)
    name = folder.resolve().name
    facts = {
        "task": manifest["task"],
        "precisions": ",".join(manifest["models"]),
        "source": manifest.get("source", {}).get("name", ""),
        "source_sha256": manifest.get("source", {}).get("sha256", ""),
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model:{name}@{files[MANIFEST]}",
        "name": name,
        # A bundle has no version; the hash of its manifest names every byte of it.
        "version": files[MANIFEST][:12],
        "hashes": [{"alg": "SHA-256", "content": files[MANIFEST]}],
        "modelCard": {"modelParameters": {"task": manifest["task"]}},
        "properties": [{"name": f"potstill:{key}", "value": value} for key, value in facts.items() if value],
        "components": [
            {
                "type": "file",
                "bom-ref": f"file:{name}/{file}@{digest}",
                "name": file,
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }
            for file, digest in sorted(files.items())
        ],
    }


def add_models(document: dict[str, Any], models: list[dict[str, Any]]) -> None:
    """Put models beside the packages, in the list and in the graph of what depends on what."""
    document["components"] = [*document.get("components", []), *models]
    document["dependencies"] = [*document.get("dependencies", []), *({"ref": one["bom-ref"]} for one in models)]


def check(text: str) -> None:
    """Hold the document against CycloneDX's own schema."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    problem = JsonStrictValidator(SchemaVersion.from_version(SPEC)).validate_str(text)
    if problem is not None:
        sys.exit(f"the document is not valid CycloneDX {SPEC}: {problem}")


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    main()
