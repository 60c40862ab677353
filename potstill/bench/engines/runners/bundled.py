"""What the engines that read ONNX files take from a bundle."""

from dataclasses import dataclass
from pathlib import Path

from potstill.bundle import Bundle, Manifest, ModelContent, read_bundle, verify_files
from potstill.serve import BundleTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundled:
    """One precision of a bundle whose files were checked; see `potstill.bench.engines.runners.Runner` for the rest."""

    bundle: Bundle
    precision: str
    model_file: Path
    disabled_optimizers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tokenizer: BundleTokenizer
    vocab_size: int | None
    batch_invariant: bool
    pooling: str
    files: dict[str, str]

    def read_model(self) -> ModelContent:
        """Return the bytes to load, checked as they were read.

        Raises:
            TamperedError: if the file has changed.
        """
        return self.bundle.read_model(self.precision)


def read_bundled(folder: Path, precision: str, *, max_length: int | None = None) -> Bundled:
    """Check every file of a bundle and read what says how one precision is run.

    Args:
        folder: the bundle.
        precision: which file.
        max_length: the longest text in tokens, where it shall be shorter than the bundle's own.

    Raises:
        BundleError: if it is no bundle, or has no such precision.
        TamperedError: if a file is not the one that the manifest names.
    """
    bundle = read_bundle(folder, verify=False)
    verify_files(bundle, but=bundle.loaded_files(precision))
    manifest, record = bundle.manifest, bundle.model_record(precision)
    if max_length is not None and max_length < manifest.max_length:
        manifest = manifest.model_copy(update={"max_length": max_length})
    loaded = [record.file, *record.external_data, "tokenizer.json", "tokenizer_config.json"]
    return Bundled(
        bundle=bundle,
        precision=precision,
        model_file=bundle.model_file(precision),
        disabled_optimizers=tuple(record.disabled_optimizers or manifest.disabled_optimizers),
        inputs=tuple(manifest.inputs),
        outputs=tuple(manifest.outputs),
        tokenizer=BundleTokenizer(folder, manifest, read=bundle.read),
        vocab_size=_vocab_size(manifest),
        batch_invariant=record.batch_invariant,
        pooling=manifest.pooling.mode if manifest.pooling else "mean",
        files={name: manifest.files[name].sha256 for name in loaded if name in manifest.files},
    )


def _vocab_size(manifest: Manifest) -> int | None:
    size = manifest.architecture.vocab_size
    return int(size) if size else None
