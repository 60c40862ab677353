"""The bundle, which is what export writes and bench and serve read: its files, its manifest, and how they are checked.

    student-onnx/
      config.json  tokenizer.json  tokenizer_config.json   as transformers writes them
      onnx/model.onnx  onnx/model_int8.onnx                the hub's names for the precisions
      onnx/model.onnx_data                                 weights that are too large for one file
      potstill.json                                        the manifest, which names and hashes all of the above
      README.md                                            the model card, for the hub

`read_bundle` hashes every file before a parser sees it, and knows every file that onnxruntime would open. `Bundle.read`
reads a file once and returns the very bytes that it hashed, so a file that changes between check and use does no harm.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from potstill.errors import BundleError, TamperedError
from potstill.messages import describe_fault, first_line
from potstill.onnx_inspect import check_declared_precision, read_outline

MANIFEST_NAME = "potstill.json"
CARD_NAME = "README.md"
"""The model card. It has no hash in the manifest: whoever publishes a bundle adds a license and a language to it."""
# Schema 1 is read as well; a manifest with a higher number than this is refused.
SCHEMA_VERSION = 2
LABELLED_TASKS = ("text-classification", "token-classification")
Precision = Literal["fp32", "fp16", "int8", "int8-static"]
EngineName = Literal["onnxruntime", "openvino"]
"""What can run the files of a bundle; the files are the same."""
# The hub's names, by which transformers.js finds fp32, fp16 and int8.
MODEL_FILES: dict[str, str] = {
    "fp32": "onnx/model.onnx",
    "fp16": "onnx/model_fp16.onnx",
    "int8": "onnx/model_int8.onnx",
    "int8-static": "onnx/model_int8_static.onnx",
}
WEIGHT_ONLY = "weight-only"
"""`quantisation.method` of an int8 file whose weights are stored as integers but multiplied as floats."""
RECOMMENDED: tuple[Precision, ...] = ("int8", "int8-static", "fp32", "fp16")
"""What to serve on a CPU where nobody chose: the first of these that a bundle has. All of them passed their gates."""
LONGEST_TEXT = 2**20
"""The largest `max_length` of a manifest, in tokens; a tokenizer allocates arrays of this length when it is loaded."""
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


class _Record(BaseModel):
    """A part of the manifest whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Evidence(BaseModel):
    """What was measured or done when a file was made.

    It is written as it was given: what was not set is left out. It is read leniently, because an older bundle may say
    less and one of a newer potstill more; what is missing has the default, and unknown keys are kept.
    """

    model_config = ConfigDict(extra="allow", frozen=True, serialize_by_alias=True, validate_by_name=True)

    @model_serializer(mode="wrap")
    def _leave_out_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        content: dict[str, object] = handler(self)
        for name, field in type(self).model_fields.items():
            if name not in self.model_fields_set:
                content.pop(field.alias or name, None)
        return content


class Fusion(Evidence):
    """How many operators of the graph are what a layer's attention, activation and norm became."""

    attention: str | None = None
    """`fused` (onnxruntime's operator) or `onnx` (the standard's)."""
    attention_expected: int | None = None
    """One per layer, as the configuration says."""
    attention_found: int | None = None
    layer_norms: int = 0
    gelus: int = 0
    nodes: int = 0
    shape_nodes: int = 0
    """Nodes that compute with sizes and constants only."""
    opset: int | None = None
    """The ONNX operator set that a runtime must know."""
    onnxruntime_operators: list[str] = []
    """Operators outside of the standard, com.microsoft's, that it must know as well."""


class ParityCell(Evidence):
    """One batch size, length and mask of the grid."""

    batch_size: int = 0
    length: int = 0
    """In tokens."""
    mask: str = ""
    max_abs_difference: float = nan
    root_mean_square: float = nan
    """Of the reference's answers."""
    label_agreement: float = nan
    """The share of clear labels that both name."""


class Parity(Evidence):
    """The answers held against a reference's over a grid of batches, lengths and masks."""

    reference: str = ""
    cells: int = 0
    max_abs_difference: float = nan
    label_agreement: float = nan
    grid: list[ParityCell] = []
    tolerance: float | None = None
    """What fp32 may differ by; other precisions have none."""
    inputs: str | None = None
    left_out: str | None = None
    """Cells that would not fit into memory, in words."""
    checked_on: str | None = None
    gpu: str | None = None


class Agreement(Evidence):
    """How far a file's answers are from fp32's, without labels."""

    measure: str = ""
    value: float = nan
    flips: int | None = None
    """Decisions that changed; None where an answer is an amount or a vector."""
    decisions: int | None = None
    mean_kl: float | None = None
    """KL(fp32 || file) in nats."""
    max_abs_difference: float = nan


class McNemar(Evidence):
    """Texts that only one of two files answers rightly, and the exact test's p value."""

    lost: int = 0
    gained: int = 0
    p_value: float = nan


class LabelledLoss(Evidence):
    """What a file loses of fp32's score on labelled texts."""

    metric: str = ""
    reference: float = nan
    candidate: float = nan
    mcnemar: McNemar | None = None
    relative_loss: float | None = None
    relative_loss_interval: tuple[float, float] | None = None


class LabelLoss(Evidence):
    """How far the recall of one label, or of one type of entity, falls against fp32's."""

    label: str = ""
    support: int = 0
    """How many there are: by the labels of the texts, or without labels by fp32's answers."""
    reference: float = nan
    """fp32's recall; 1 without labels."""
    candidate: float = nan
    loss: float = nan
    """reference - candidate: 0.05 is 5 points."""
    loss_interval: tuple[float, float] = (nan, nan)
    """95 % for all labels together."""
    verdict: str = ""
    """FAIL where the whole interval lies above `max_label_loss`, PASS where all of it is within."""


class QualityLoss(Evidence):
    """What a file loses against fp32 on real texts."""

    texts: int = 0
    rows: int = 0
    max_loss: float = nan
    verdict: str = ""
    """PASS, FAIL or INCONCLUSIVE."""
    holds: bool = False
    loss: float = nan
    loss_interval: tuple[float, float] = (nan, nan)
    """95 %."""
    texts_needed: int | None = None
    """How many texts would decide; None if no number would."""
    reason: str | None = None
    basis: str = ""
    """The metric that the verdict rests on, or `agreement`."""
    agreement: Agreement | None = None
    labelled: LabelledLoss | None = None
    max_label_loss: float | None = None
    """By how much the recall of any label may fall."""
    labels: list[LabelLoss] = []
    """Of every label that occurs, of classifiers; one that FAILs makes the whole FAIL."""
    on: str | None = None
    """Where the texts are from."""

    @property
    def worst_label(self) -> LabelLoss | None:
        """The label whose recall falls most, of those that fail where some do."""
        return max(self.labels, key=lambda row: (row.verdict == "FAIL", row.loss, row.support), default=None)


class BatchDrift(Evidence):
    """How far answers moved in batches of one size."""

    max_drift: float = nan
    mean_drift: float = nan
    flips: int | None = None


class BatchInvariance(Evidence):
    """How far answers move between a text alone and in batches with padding."""

    texts: int = 0
    rows: int = 0
    batches: dict[str, BatchDrift] = {}
    """By batch size."""
    flips: int | None = None
    """Answers that changed in any batch; None where an answer is an amount or a vector."""
    max_drift: float = nan
    spread: float = nan
    """The standard deviation of the answers, by which a drift is large or small."""
    invariant: bool = False


class Saturation(Evidence):
    """Whether sums of two int8 products overflow 16 bits on an x86 CPU without VNNI, when the file reads real texts."""

    products: int = 0
    """Integer products with constant int8 weights."""
    unchecked: int = 0
    """Those whose weights are made at run time."""
    saturating_products: int = 0
    """Those in which at least one sum overflowed."""
    pairs: int = 0
    """Sums that were looked at."""
    saturated_pairs: int = 0
    """Those outside of 16 bits, estimated from a sample where very many could be."""
    share: float = 0.0
    largest_sum: int = 0
    """The sum furthest from 0; 32767 fits."""
    worst: str | None = None
    """The product whose outputs are most wrong then."""
    worst_error: float = 0.0
    """By how much, as a share of their spread."""
    breaks_without_vnni: bool | None = None


class SpeedCell(Evidence):
    """Two files' median times for one batch size and length."""

    batch_size: int = 0
    num_tokens: int = 0
    ratio: float = nan
    interval: tuple[float, float] = (nan, nan)
    fp32_ms: float = nan
    int8_ms: float = nan


class Speed(Evidence):
    """How many times as fast as fp32 a file is on the machine it was made on."""

    cpu: str | None = None
    threads: int | None = None
    rounds: int | None = None
    cells: list[SpeedCell] = []
    ratio: float | None = None
    """The geometric mean over the cells; None where it was not measured."""
    interval: tuple[float, float] | None = None
    verdict: str = "not measured"
    """faster, slower, no faster or not measured."""
    failures: dict[str, str] = {}
    """Why it was not measured, by what failed."""


class FallbackStep(Evidence):
    """One attempt to make int8 hold, with so many layers left in fp32."""

    fp32_layers: int = 0
    added: str | None = None
    """The layer that went back to fp32 in this step."""
    loss: float = nan
    loss_interval: tuple[float, float] = (nan, nan)
    verdict: str = ""
    label: str | None = None
    """The label whose recall falls most."""
    label_loss: float | None = None
    label_verdict: str | None = None


class Quantization(Evidence):
    """How a file was quantised."""

    method: str | None = None
    """`dynamic`, `static`, or `weight-only` for another tool's file that stores integers and multiplies floats."""
    made_by: str | None = None
    """Set for a file that was quantised before potstill saw it."""
    weight_bits: int = 8
    embedding_bits: int = 8
    """Of the table of words."""
    per_channel: bool | None = None
    smoothing: float | None = None
    attention: str = "float"
    gelu: str = "exact"
    weights: str | None = None
    activations: str | None = None
    embeddings: str | None = None
    calibration: str | None = None
    fp32_layers: list[str] = []
    """Layers that were left in fp32, because int8 loses too much there."""
    texts: str | None = None
    """Where the calibration texts are from."""
    steps: list[FallbackStep] = []
    integer_products: int = Field(default=0, alias="integer")
    float_products: int = Field(default=0, alias="float")
    weight_only: int = 0
    """Products whose weight is stored as integers and multiplied as floats."""


class TunedCandidate(Evidence):
    """One recipe that `--tune` timed."""

    name: str = ""
    recipe: Quantization = Quantization()
    disabled_optimizers: list[str] = []
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    ms: dict[str, float | None] = {}
    """Median by cell, such as "1x128"."""
    failed: str | None = None
    refused: str | None = None
    """The gate that it did not pass."""


class Tuning(Evidence):
    """The candidates of `--tune`, and which of them the file is."""

    cpu: str | None = None
    threads: int | None = None
    kept: str | None = None
    candidates: list[TunedCandidate] = []
    disturbed: str | None = None
    """What kept the machine too busy to time anything."""


class EngineCheck(Evidence):
    """A file's answers on another engine, held against those of fp32 in onnxruntime (`export --check-engine`)."""

    version: str | None = None
    """The engine's."""
    parity: Parity = Parity()
    quality: QualityLoss | None = None
    invariance: BatchInvariance | None = None


class TokenizerParity(Evidence):
    """The bundle's tokenizer held against the checkpoint's file, id by id."""

    texts: int = 0
    nasty: int = 0
    """Texts among them that are made to break tokenizers."""
    max_length: int = 0
    equal: bool = False


class Architecture(Evidence):
    """The model's sizes."""

    model_type: str | None = None
    layers: int | None = None
    hidden_size: int | None = None
    heads: int | None = None
    vocab_size: int | None = None
    encoder_parameters: int | None = None
    max_position_embeddings: int | None = None


class TokensPerText(Evidence):
    """How many tokens some texts have before and after a vocabulary was trimmed, special tokens left out."""

    texts: str = ""
    """Data set and split."""
    num_texts: int = 0
    before: float = nan
    """Tokens per text by the whole vocabulary."""
    after: float = nan

    @property
    def more(self) -> float:
        """How many more tokens there are, as a share of those before."""
        return self.after / self.before - 1


class TrimmedVocabulary(Evidence):
    """What trimming a vocabulary saved, and what it costs."""

    asked: str = ""
    """`task`, a size, or `min-count=N`."""
    rows: int = 0
    """Of the word embeddings."""
    rows_before: int = 0
    parameters_saved: int = 0
    counted_on: str = ""
    """The texts whose pieces decided which stay."""
    tokens_per_text: list[TokensPerText] = []
    """On texts of the task first, then on those of another domain."""


class SourceRecord(Evidence):
    """What the bundle was made from."""

    name: str | None = None
    sha256: str | None = None
    """Over the checkpoint's files, or of the ONNX file; None for a hub id."""
    kind: str | None = None
    """`checkpoint` or `onnx`."""
    notes: list[str] = []
    """What a user must know to get the checkpoint's own answers."""
    vocabulary: TrimmedVocabulary | None = None
    """Set where the checkpoint's vocabulary is a part of that of the model it comes from."""


class AgainstTrivial(Evidence):
    """A model's score against that of the best answer that ignores the text, on the same examples."""

    metric: str = ""
    value: float = nan
    """The model's score."""
    interval: tuple[float, float] = (nan, nan)
    """Its 95 % interval, by bootstrap over the examples."""
    trivial: float = nan
    """The score of the answer that ignores the text."""
    trivial_answer: str = ""
    """What that answers, such as "always negative"."""
    difference_interval: tuple[float, float] = (nan, nan)
    """The 95 % interval of what the model is better by; negative is worse, also where a low score is good."""
    better: bool = True
    """Whether that interval lies above 0."""
    num_examples: int = 0
    sentence: str | None = None
    """What a user must be told of a model that is not better; None where it is."""
    on: str | None = None
    """Where the texts are from."""


class Made(Evidence):
    """When, where and how the bundle was made."""

    created: str | None = None
    command: str | None = None
    config: dict[str, JsonValue] = {}
    """`potstill.config.ExportConfig`."""
    cpu: str | None = None
    packages: dict[str, str] = {}
    """Versions."""
    judged: AgainstTrivial | None = None


class FileRecord(_Record):
    """One file of a bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Pooling(_Record):
    """How one vector is made of a text's token vectors."""

    mode: str = Field(pattern=rf"^({'|'.join(POOLING_MODES)})(\+({'|'.join(POOLING_MODES)}))*$")
    """`mean`, `cls`, `max`, or one of sentence-transformers' rarer ones; several side by side are joined by +."""
    normalize: bool = True
    projected: bool = False
    """Whether layers of the model's own follow the pooling, whose weights are in the graph alone."""

    @property
    def is_simple(self) -> bool:
        """Whether a vector can be made of the token vectors without the graph."""
        return self.mode in {"mean", "cls", "max"} and not self.projected


class ModelRecord(_Record):
    """One ONNX file: how it was made and how it was checked."""

    file: str
    external_data: list[str] = []
    """Files beside it that hold its weights, where it is too large for one; named as in the manifest's `files`."""
    quantisation: Quantization | None = None
    """The int8 recipe; None for a file that was not quantised."""
    cpu_features: list[str] = []
    """The CPU features of the machine it was made and checked on."""
    batch_invariant: bool = True
    """Whether a text's answer is the same alone and in a batch, up to the rounding of float sums. Dynamic int8 has one
    activation scale for the whole batch, so its answers are not (microsoft/onnxruntime#10111)."""
    unpadded: bool = False
    """Whether its products leave padding out, so that a batch costs what its tokens cost and not its longest text."""
    first_token_only: bool = False
    """Whether its last layer is computed for the first token alone, because the head reads no other."""
    disabled_optimizers: list[str] = []
    """onnxruntime graph optimisers that the session switches off for this file, because measuring said so."""
    fusion: Fusion = Fusion()
    parity: Parity = Parity()
    quality: QualityLoss | None = None
    """None for fp32 itself."""
    invariance: BatchInvariance | None = None
    saturation: Saturation | None = None
    """None for a file without int8."""
    speed: Speed | None = None
    tuning: Tuning | None = None
    engines: dict[EngineName, EngineCheck] = {}
    """Other engines that it was checked on."""


class Manifest(_Record):
    """What `potstill.json` says."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, strict=True)
    task: str
    labels: list[str] = []
    """In the order of the outputs; empty where a task has none."""
    max_length: int = Field(ge=1, le=LONGEST_TEXT)
    """The longest text in tokens, special ones included."""
    padding_side: Literal["left", "right"] = "right"
    pad_token_id: int = Field(default=0, ge=0, le=2**31 - 1)
    inputs: list[str] = Field(min_length=1)
    outputs: list[str] = Field(min_length=1)
    parameters: int = Field(ge=1)
    architecture: Architecture = Architecture()
    models: dict[Precision, ModelRecord] = Field(min_length=1)
    files: dict[str, FileRecord]
    problem_type: str | None = None
    """What a text classifier answers: a single label, several, or a number; None is a single label."""
    pooling: Pooling | None = None
    """How the graph makes one vector of a text's tokens, where it does."""
    tokenizer_parity: TokenizerParity = TokenizerParity()
    disabled_optimizers: list[str] = []
    """Of schema 1: what every file's session switches off."""
    source: SourceRecord = SourceRecord()
    made: Made = Made()
    digest: str | None = None
    """SHA-256 over all that the manifest says beside it, against flipped bits; manifests made before have none."""

    @model_validator(mode="after")
    def _labelled(self) -> Self:
        if self.task in LABELLED_TASKS and not self.labels:
            raise ValueError(f"labels are missing, and {self.task} answers with them")
        return self

    @field_validator("files")
    @classmethod
    def _names_stay_inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise ValueError(f"{name!r} leaves the folder")
        return files

    def model_bytes(self, record: ModelRecord) -> int:
        """Return the size of a model's files in bytes: the graph, and weights beside it."""
        return sum(self.files[name].size_bytes for name in (record.file, *record.external_data))


@dataclass(frozen=True, slots=True)
class ModelContent:
    """The checked bytes of one ONNX file and of its weight files; drop it once the session is made, to free them."""

    file: Path
    """The path it was read from, for error messages only."""
    model: bytes
    weights: Mapping[str, bytes]
    """External data: the bytes of each weight file, by the location that the model's tensors name."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """An exported folder with its parsed manifest; its files are checked by `verify_files`, or one by one by `read`."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str = ""
    """SHA-256 of the bytes of potstill.json, in hexadecimal."""

    def choose(self, precision: str | None = None) -> str:
        """Return the precision to use: `precision` if given, else fp32, else the only one in the bundle.

        Raises:
            BundleError: if the bundle has no such precision, or none is given and it has several without fp32.
        """
        have = list(self.manifest.models)
        if precision is None and "fp32" not in have:
            if len(have) > 1:
                raise BundleError(f"{self.folder} has {', '.join(have)} and no fp32; name the precision that is meant")
            return have[0]
        self.model_record(precision or "fp32")
        return precision or "fp32"

    def model_record(self, precision: str) -> ModelRecord:
        """Return the record of one precision.

        Raises:
            BundleError: if the bundle has no such file.
        """
        for name, record in self.manifest.models.items():
            if name == precision:
                return record
        have = ", ".join(self.manifest.models)
        raise BundleError(f"{self.folder} has no {precision} model; it has {have}")

    def read(self, name: str) -> bytes:
        """Return the bytes of one file, after checking them against the manifest.

        Args:
            name: the file's key in the manifest's `files`, relative to the folder.

        Raises:
            TamperedError: if size or SHA-256 differ, or the file is not listed, is missing or leaves the folder.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise TamperedError(f"{self.folder / name} is not named by {MANIFEST_NAME}; export the bundle again")
        file = _inside(self.folder, name)
        try:
            with file.open("rb") as stream:
                content = stream.read(record.size_bytes + 1)  # no more, whatever the file has become
        except OSError as error:
            raise TamperedError(f"{file} cannot be read: {error.strerror}; export the bundle again") from error
        if len(content) != record.size_bytes or hashlib.sha256(content).hexdigest() != record.sha256:
            raise _changed(file)
        return content

    def read_model(self, precision: str) -> ModelContent:
        """Return the checked bytes of one precision's ONNX file and of its external weight files.

        Raises:
            BundleError: if the bundle has no such file.
            TamperedError: if it is not what the manifest says.
        """
        record = self.model_record(precision)
        model = self.read(record.file)
        _verify_model(self.folder, precision, record, model)
        # The model names a weight file relative to its own folder, the manifest relative to the bundle.
        weights = {PurePosixPath(name).name: self.read(name) for name in record.external_data}
        return ModelContent(self.folder / record.file, model, weights)

    def loaded_files(self, precision: str) -> set[str]:
        """Return the manifest names of the files that loading one precision reads through `read`."""
        record = self.model_record(precision)
        names = {record.file, *record.external_data, "tokenizer.json", "tokenizer_config.json"}
        return names & self.manifest.files.keys()

    def model_file(self, precision: str) -> Path:
        """Return the path of the ONNX file of one precision."""
        return self.folder / self.model_record(precision).file

    def record_of(self, precision: str) -> FileRecord:
        """Return hash and size of the ONNX file of one precision."""
        return self.manifest.files[self.model_record(precision).file]


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Hash every file below `folder` but the manifest and the model card; names are relative, with forward slashes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size)
        for path in files
        if path.name != MANIFEST_NAME and path != folder / CARD_NAME
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `potstill.json` with its digest into a folder; `manifest.files` must describe the folder as it is."""
    content = manifest.model_dump(mode="json")
    content["digest"] = _digest_of(content)
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def _digest_of(content: Mapping[str, object]) -> str:
    # Over the sorted values and not the bytes, so that reformatting the JSON is no tampering. It detects damage, not
    # forgery: whoever can write the file can write another digest.
    rest = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def read_bundle(folder: Path, *, verify: bool = True) -> Bundle:
    """Read a bundle's manifest and, unless told otherwise, check every file against its hash.

    Raises:
        BundleError: if `folder` is not a bundle, or one of a newer schema.
        TamperedError: if a file is missing, is a link out of the folder, has other bytes than the manifest says, would
            make onnxruntime open another file, or is not of the precision that the manifest says.
    """
    folder = folder.expanduser()
    manifest_file = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise BundleError(
            f"{folder} is not a folder; export a checkpoint first: potstill export CHECKPOINT --out {folder}"
        )
    if not manifest_file.is_file():
        raise BundleError(f"{folder} has no {MANIFEST_NAME}, so it is not a bundle; make one with `potstill export`")
    try:
        written = manifest_file.read_bytes()
        content = json.loads(written)
        # Asked before validation, where a key that only a newer schema has would look like tampering.
        newest = content.get("schema_version", 0) if isinstance(content, dict) else 0
        if isinstance(newest, int) and newest > SCHEMA_VERSION:
            raise BundleError(f"{manifest_file} has schema {newest}, newer than {SCHEMA_VERSION}; update potstill")
        manifest = Manifest.model_validate(content)
        # Of what the file says and not of the validated model, which has defaults where the file says nothing.
        if manifest.digest is not None and manifest.digest != _digest_of(content):
            raise TamperedError(f"{manifest_file} was changed after it was written; export the bundle again")
    # RecursionError: json.loads on a value that is nested too deeply.
    except (ValidationError, ValueError, RecursionError) as error:
        fault = error.errors()[0] if isinstance(error, ValidationError) else None
        # Whoever wrote a number that no machine can serve did not change a good bundle: they made a bad one.
        kind = BundleError if fault and fault["type"] == "less_than_equal" else TamperedError
        reason = describe_fault(fault, Manifest) if fault else first_line(error)
        raise kind(f"{manifest_file} is not a valid manifest: {reason}") from error
    bundle = Bundle(folder, manifest, hashlib.sha256(written).hexdigest())
    _check_names(bundle)
    if verify:
        verify_files(bundle)
    return bundle


def verify_files(bundle: Bundle, *, but: Collection[str] = ()) -> None:
    """Check every file of a bundle against its manifest, then the weight files and precision of every ONNX file.

    Args:
        bundle: the bundle.
        but: names of files to skip, because the caller reads them with `Bundle.read`, which checks them again.

    Raises:
        TamperedError: naming the first file that is missing, leaves the folder, has other bytes, is cut short, keeps
            weights where the manifest does not say, or is of another precision.
    """
    for name, record in bundle.manifest.files.items():
        file = _inside(bundle.folder, name)
        # The size first: it costs nothing, and spares hashing gigabytes of a file that is cut short.
        if name not in but and (file.stat().st_size != record.size_bytes or sha256_of(file) != record.sha256):
            raise _changed(file)
    for precision, model in bundle.manifest.models.items():
        if model.file not in but:
            _verify_model(bundle.folder, precision, model)


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file of the bundle, or raise TamperedError if it is missing or lies outside of `folder`."""
    file = folder / name
    if not file.is_file():
        raise TamperedError(f"{file} is missing, though the manifest names it; export the bundle again")
    # Both sides are resolved: the bundle itself may be reached by a link, and links inside of it are fine.
    if not file.resolve().is_relative_to(folder.resolve()):
        raise TamperedError(f"{file} is a link that leaves the bundle; export the bundle again")
    return file


def _changed(file: Path) -> TamperedError:
    return TamperedError(
        f"{file} is not the file that was exported: its SHA-256 differs from {MANIFEST_NAME}; "
        "export the bundle again or fetch it again"
    )


def _verify_model(folder: Path, precision: str, record: ModelRecord, content: bytes | None = None) -> None:
    """Check that an ONNX file opens exactly the weight files, and has the precision, that its record says.

    `content` are the file's bytes if they were read already.
    """
    file = folder / record.file
    try:
        outline = read_outline(file, content)
    except BundleError as error:
        raise TamperedError(str(error)) from error
    listed = {PurePosixPath(name).name for name in record.external_data}
    # Either difference is refused: a file that was not hashed would be read, or one that was would not be.
    for location in sorted(outline.locations ^ listed):
        says, lists = ("does not say so", "keeps") if location in outline.locations else ("says so", "does not keep")
        raise TamperedError(f"{file} {lists} weights in {location!r} and {MANIFEST_NAME} {says}; export it again")
    for name in record.external_data:
        # A hard link has no path to resolve, but its bytes can be changed by the other name after the check.
        if (folder / name).is_symlink() or (folder / name).stat().st_nlink > 1:
            raise TamperedError(f"{folder / name} is a link, so its weights may change from elsewhere; copy it here")
    weight_only = record.quantisation is not None and record.quantisation.method == WEIGHT_ONLY
    untruth = check_declared_precision(outline, precision, weight_only=weight_only)
    if untruth:
        raise TamperedError(f"{file} is not {precision}: {untruth}; export the bundle again")


def _check_names(bundle: Bundle) -> None:
    """Check that every file that a reader will open is listed with a hash, before any of them is opened."""
    for precision, record in bundle.manifest.models.items():
        if record.file not in bundle.manifest.files:
            raise TamperedError(f"{bundle.folder / MANIFEST_NAME} names {record.file} as {precision} without a hash")
        for name in record.external_data:
            if name not in bundle.manifest.files:
                raise TamperedError(f"{bundle.folder / MANIFEST_NAME} names {name} for {precision} without a hash")
            # onnxruntime looks for weights in the folder of the model.
            if PurePosixPath(name).parent != PurePosixPath(record.file).parent:
                raise TamperedError(f"{bundle.folder / MANIFEST_NAME} names {name}, which is not beside {record.file}")
    if "tokenizer.json" not in bundle.manifest.files:
        raise TamperedError(f"{bundle.folder / MANIFEST_NAME} has no hash of tokenizer.json")
    # The server reads this one where it finds it, so it must not come in beside the manifest.
    planted = bundle.folder / "tokenizer_config.json"
    if planted.name not in bundle.manifest.files and planted.is_file():
        raise TamperedError(f"{planted} is not named by {MANIFEST_NAME}; export the bundle again")
