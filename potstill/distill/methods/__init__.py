"""The methods of distillation, one file each: its losses, and the `Objective` that the trainer runs.

- `task`: labels, the teacher's answers, its last hidden states (any labelled task);
- `distilbert`: the triple loss of DistilBERT on masked words (arXiv 1910.01108);
- `minilmv2`: relations of queries, keys and values (arXiv 2012.15828);
- `tinybert`: embeddings, hidden states, attention, then answers (arXiv 1909.10351);
- `mobilebert`: feature maps and attention layer by layer, then words (arXiv 2004.02984);
- `embedding`: the teacher's sentence vectors.

`make_objective` builds the one that a recipe names; `make_labels_objective` the loss without a teacher.
"""

import torch
from transformers import PreTrainedModel

from potstill.checkpoint.model import SentenceHead
from potstill.config import Recipe
from potstill.distill.methods.distilbert import TripleLoss
from potstill.distill.methods.embedding import EmbeddingDistillation, student_head
from potstill.distill.methods.minilmv2 import MiniLMv2
from potstill.distill.methods.mobilebert import MobileBert
from potstill.distill.methods.objective import Objective
from potstill.distill.methods.task import TaskDistillation
from potstill.distill.methods.tinybert import TinyBert, check_layer_map, uniform_layer_map
from potstill.distill.teacher_embeddings import teacher_head
from potstill.distill.torch_session import problem_type_of
from potstill.errors import CheckpointError
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, get_task, kind_of

__all__ = ["Objective", "make_labels_objective", "make_objective"]

# MiniLMv2's large teachers (24 layers) teach from an upper middle layer, the 21st of 24; smaller ones from the last
# (arXiv 2012.15828, section 4.2).
_LARGE_TEACHER = 24
_UPPER_MIDDLE = 21 / 24
# The settings of `TripleLoss`, and of `TaskDistillation`, among those of a method.
_TRIPLE_LOSS = ("temperature", "alpha_kl", "alpha_mlm", "alpha_cos")
_TASK_LOSS = ("temperature", "alpha_kl", "alpha_ce", "alpha_cos")


def make_objective(
    recipe: Recipe,
    *,
    teacher: PreTrainedModel | None,
    student: PreTrainedModel,
    vectors: tuple[SentenceHead, int] | None = None,
) -> Objective:
    """Return the loss of the recipe's method for this pair; what it learns itself starts from the recipe's seed.

    Args:
        recipe: names the method.
        teacher: None if its answers are stored.
        student: learns.
        vectors: for method `embedding` and stored vectors, how vectors of their kind are pooled, and their width.

    Raises:
        CheckpointError: if the method cannot compare the two.
    """
    # Learned projections start from the recipe's seed, not from wherever torch's global generator stands: a resumed run
    # built them at another moment and got others (docs/log.md).
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        if teacher is not None:
            return _make_objective(recipe, teacher, student)
        settings = recipe.distill.settings()
        if vectors is not None:
            return _embedding(recipe, vectors[0], vectors[1], student)
        kind = kind_of(get_task(recipe.task), problem_type_of(student))
        return TaskDistillation(kind, **{name: settings[name] for name in _TASK_LOSS})


def make_labels_objective(recipe: Recipe, model: PreTrainedModel) -> Objective:
    """Return the loss of the data alone, without a teacher: labels, or masked words."""
    if get_task(recipe.task) is FILL_MASK:
        return TripleLoss(temperature=1.0, alpha_kl=0.0, alpha_mlm=1.0, alpha_cos=0.0)
    kind = kind_of(get_task(recipe.task), problem_type_of(model))
    return TaskDistillation(kind, temperature=1.0, alpha_kl=0.0, alpha_ce=1.0, alpha_cos=0.0)


def _make_objective(recipe: Recipe, teacher: PreTrainedModel, student: PreTrainedModel) -> Objective:
    method, settings, task = recipe.distill.method, recipe.distill.settings(), get_task(recipe.task)
    kind = None if task in (FILL_MASK, FEATURE_EXTRACTION) else kind_of(task, problem_type_of(teacher))
    student_layers, teacher_layers = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    student_width, teacher_width = student.config.hidden_size, teacher.config.hidden_size
    if method in {"task", "distilbert"} and settings["alpha_cos"] > 0 and student_width != teacher_width:
        raise CheckpointError(
            f"the student has {student_width} hidden units and the teacher {teacher_width}, and the cosine compares "
            "them one by one; set distill.alpha_cos=0, or take tinybert or minilmv2 for a narrower student"
        )
    triple = {name: settings[name] for name in _TRIPLE_LOSS if name in settings}
    match method:
        case "task":
            assert kind is not None
            return TaskDistillation(kind, **{name: settings[name] for name in _TASK_LOSS})
        case "distilbert":
            return TripleLoss(**triple)
        case "minilmv2":
            layer = settings["teacher_layer"]
            if layer is None:
                large = teacher_layers >= _LARGE_TEACHER
                layer = round(teacher_layers * _UPPER_MIDDLE) - 1 if large else teacher_layers - 1
            return MiniLMv2(
                teacher_layer=layer,
                # MobileBERT's queries are as wide as its bottleneck.
                student_width=getattr(student.config, "true_hidden_size", None) or student_width,
                teacher_width=getattr(teacher.config, "true_hidden_size", None) or teacher_width,
                heads=settings["relation_heads"],
                relation_weights=settings["relation_weights"],
            )
        case "tinybert":
            layer_map = settings["layer_map"]
            if layer_map:
                check_layer_map(layer_map, student_layers, teacher_layers)
            return TinyBert(
                student,
                teacher,
                layer_map=layer_map or uniform_layer_map(student_layers, teacher_layers),
                weights={
                    "emb": settings["alpha_embedding"],
                    "hid": settings["alpha_hidden"],
                    "att": settings["alpha_attention"],
                    "pred": settings["alpha_prediction"],
                },
                problem=kind,
                intermediate_share=settings["intermediate_share"],
                temperature=settings["temperature"],
            )
        case "mobilebert":
            return MobileBert(
                student,
                teacher,
                layer_map=uniform_layer_map(student_layers, teacher_layers),
                weights={"feat": settings["alpha_feature"], "att": settings["alpha_attention"]},
                # Equation 4 has no cosine; feature maps were compared in the first phase.
                words=TripleLoss(**triple | {"alpha_cos": 0.0}),
                progressive_share=settings["progressive_share"],
            )
        case "embedding":
            assert recipe.teacher.model is not None
            return _embedding(recipe, teacher_head(recipe.teacher.model, settings["pooling"]), teacher_width, student)


def _embedding(recipe: Recipe, head: SentenceHead, width: int, student: PreTrainedModel) -> EmbeddingDistillation:
    """Return the loss of sentence vectors; `head` makes the teacher's of token vectors of this width."""
    settings = recipe.distill.settings()
    own = student_head(
        head,
        student=recipe.student.model,
        pooling=settings["pooling"],
        student_width=student.config.hidden_size,
        teacher_width=width,
    )
    return EmbeddingDistillation(own, alpha_cos=settings["alpha_cos"], alpha_mse=settings["alpha_mse"])
