"""What can be refused without a model is refused before torch is imported: one line, in the words of the command."""

import json
import re
import shutil
from pathlib import Path

import pytest

from potstill.cli.app import COMMANDS
from tests import sealed
from tests.cli.forked import LOADED_HEAVY, run_all

ROOT = Path(__file__).parents[2]
OUT = ("--out", "out")
TRAIN = ("--data", "data", *OUT)

BAD = [
    # a mistyped folder, of a model, of data, of a tokenizer
    (("distill", "techer", *TRAIN), "there is no checkpoint folder techer here", "did you mean teacher?"),
    (("distill", "./techer", *TRAIN), "there is no checkpoint folder ./techer", "did you mean teacher?"),
    (("distill", "Teacher/", *TRAIN), "there is no checkpoint folder Teacher/", "did you mean teacher?"),
    (("distill", "teacher", "--data", "dta", *OUT), "there is no file or folder dta here", "did you mean data?"),
    (("distill", "teacher", "--data", "data.csv", *OUT), "there is no file or folder data.csv"),
    (("distill", "teacher", *TRAIN, "--set", "tokenizer=tokeniser"), "--set tokenizer: there is no"),
    (("distill", "teacher", *TRAIN, "--set", "student.model=studnt"), "student.model: there is no"),
    (("distill", "teacher", *TRAIN, "--student", "studnt"), "student.model: there is no"),
    (("distill", "teacher", *TRAIN, "--teacher", "techer"), "--teacher: there is no", "did you mean teacher?"),
    (("distill", "teacher", *TRAIN, "--unlabelled", "dta"), "there is no file or folder dta here"),
    (("distill", *TRAIN, "--teacher-column", "llm"), "a column of answers has no layers to cut a student from"),
    (("distill", "--student", "teacher", *TRAIN, "--teacher-column", "llm"), "data has no column 'llm'"),
    (("distill", "teacher", *TRAIN, "--teacher-column", "llm"), "give one of model"),
    (("distill", "teacher", *TRAIN, "--student", "teacher", "--layers", "9"), "cannot be cut from teacher with 6"),
    (("finetune", "techer", *TRAIN), "did you mean teacher?"),
    (("finetune", "teacher", "--data", "dta", *OUT), "did you mean data?"),
    (("init", "techer", *OUT), "did you mean teacher?"),
    (("export", "techer", *OUT), "did you mean teacher?"),
    (("export", "techer.onnx", *OUT), "there is no file techer.onnx"),
    (("export", "teacher", "--tokenizer", "techer", *OUT), "--tokenizer: there is no", "did you mean teacher?"),
    (("export", "teacher", "--tokenizer", "data", *OUT), "--tokenizer: data has no tokenizer"),
    (("export", "teacher", "--data", "dta", *OUT), "did you mean data?"),
    (("evaluate", "techer", "--data", "data"), "did you mean teacher?"),
    (("evaluate", "teacher", "--data", "dta"), "did you mean data?"),
    (("evaluate", "bundle", "--data", "dta"), "did you mean data?"),
    (("evaluate", "techer", "--glue", "--data", "data", *OUT), "did you mean teacher?"),
    (("bench", "bundel", *OUT), "did you mean bundle?"),
    (("bench", "bundle", "--data", "dta", *OUT), "--data: there is no", "did you mean data?"),
    (("serve", "bundel"), "did you mean bundle?"),
    (("predict", "bundel", "texts.csv", "--out", "a.csv"), "did you mean bundle?"),
    (("predict", "bundle", "text.csv", "--out", "a.csv"), "did you mean texts.csv?"),
    (("show", "bundel"), "there is no folder bundel; did you mean bundle?"),
    (("run", "quickstart", *OUT, "--set", "data.name=dta"), "did you mean data?"),
    (("run", "sst2", *OUT), "teacher.model: there is no checkpoint folder textattack/bert-base-uncased-SST-2 here"),
    # what a folder is not
    (("distill", "data", *TRAIN), "data has no config.json"),
    (("distill", "bundle", *TRAIN), "bundle is a bundle"),
    (("distill", "teacher/config.json", *TRAIN), "is a file; name the checkpoint folder"),
    (("distill", "junk", *TRAIN), "config.json is not JSON"),
    (("export", "data", *OUT), "data has no config.json"),
    (("bench", "data", *OUT), "data is neither a bundle"),
    (("run", "data", *OUT), "data is a folder; a recipe is a YAML file"),
    (("show", "data"), "neither a bundle"),
    # layers, families, lengths
    (("distill", "teacher", *TRAIN, "--layers", "9"), "--layers 9: a student of 9 layers cannot", "ask for 1 to 6"),
    (("distill", "teacher", *TRAIN, "--layers", "0,9"), "--layers 0,9: the teacher has the layers 0 to 5"),
    (("distill", "teacher", *TRAIN, "--layers", "two"), "--layers 'two' is neither a count"),
    (("distill", "teacher", *TRAIN, "--layers", "2,1"), "--layers 2,1: must name teacher layers from 0 upwards"),
    (("distill", "teacher", *TRAIN, "--family", "roberta"), "--family roberta: input should be 'same'"),
    (("distill", "roberta", *TRAIN, "--family", "distilbert"), "--family distilbert: a DistilBERT student is cut"),
    (("distill", "teacher", *TRAIN, "--set", "max_length=1024"), "pass --set max_length=512 or less"),
    (
        ("distill", "roberta", *TRAIN, "--set", "max_length=66"),
        "64 can be used: they begin behind the padding's; pass --set max_length=64",
    ),
    (("init", "teacher", *OUT, "--layers", "9"), "--layers 9: a student of 9 layers cannot"),
    (("init", "teacher", *OUT, "--family", "albert"), "--family albert: input should be 'same'"),
    (("run", "quickstart", *OUT, "--set", "student.layers=9"), "student.layers=9: a student of 9 layers cannot"),
    (("export", "teacher", *OUT, "--max-length", "1024"), "pass --max-length 512 or less"),
    (("evaluate", "teacher", "--data", "data", "--max-length", "1024"), "pass --max-length 512"),
    # tasks, methods, metrics, precisions
    (("distill", "teacher", *TRAIN, "--task", "ner"), "--task 'ner' is not known (did you mean token-classification?)"),
    (("distill", "teacher", *TRAIN, "--task", "token-classification"), "teacher is made for text-classification"),
    (("distill", "encoder", *TRAIN), "encoder is an encoder without a head", "potstill finetune encoder --task"),
    (("distill", "teacher", *TRAIN, "--method", "distil"), "--method distil: input should be 'task', 'distilbert'"),
    (("distill", "teacher", *TRAIN, "--epochs", "0"), "--epochs 0.0: input should be greater than 0"),
    (("distill", "teacher", *TRAIN, "--set", "metric=f2"), "metric 'f2' does not judge"),
    (("distill", "teacher", *TRAIN, "--set", "distill.temprature=1"), "unknown key; did you mean 'temperature'?"),
    (("distill", "teacher", *TRAIN, "--set", "distill.batch_size=x"), "--set distill.batch_size=x: input should be"),
    (("finetune", "teacher", *TRAIN, "--task", "qa"), "(did you mean question-answering?)"),
    (("finetune", "teacher", *TRAIN, "--task", "feature-extraction"), "is not fine-tuned on labels"),
    (("finetune", "teacher", *TRAIN, "--problem-type", "regresion"), "--problem-type regresion: input should be"),
    (("init", "teacher", *OUT, "--task", "mlm"), "(did you mean fill-mask?)"),
    (("export", "teacher", *OUT, "--task", "embeddings"), "(did you mean feature-extraction?)"),
    (("export", "teacher", *OUT, "--task", "fill-mask"), "teacher is made for text-classification"),
    (("export", "teacher", *OUT, "--precision", "int4"), "--precision int4: input should be 'fp32'"),
    (("export", "teacher", *OUT, "--attention", "flash"), "--attention flash: input should be 'fused' or 'onnx'"),
    (("export", "teacher", *OUT, "--opset", "12"), "--opset 12: input should be greater than or equal to 18"),
    (("export", "teacher", *OUT, "--pooling", "median"), "--pooling median: input should be 'mean'"),
    (("export", "teacher", *OUT, "--pooling", "mean"), "--pooling makes one vector of a text"),
    (
        ("export", "teacher", *OUT, "--task", "feature-extraction", "--max-label-loss", "0.1"),
        "has no labels; leave it out",
    ),
    (("export", "teacher", *OUT, "--max-label-loss", "0"), "--max-label-loss 0.0: input should be greater than 0"),
    (("export", "teacher", *OUT, "--embedding-bits", "3"), "--embedding-bits 3: input should be 4 or 8"),
    (("export", "teacher", *OUT, "--embedding-bits", "4", "--precision", "fp32"), "add int8 or int8-static"),
    (("export", "masked", *OUT, "--embedding-bits", "4"), "fill-mask needs the table of words in 8; leave it out"),
    (("export", "teacher", *OUT, "--max-loss", "-1"), "--max-loss -1.0: input should be greater than 0"),
    (("evaluate", "teacher", "--data", "data", "--task", "ner"), "did you mean token-classification?"),
    (("evaluate", "teacher", "--data", "data", "--metric", "f3"), "metric 'f3' does not judge"),
    (("evaluate", "teacher", "--data", "data", "--pooling", "median"), "it is mean or cls"),
    (("evaluate", "teacher", "--data", "data", "--precision", "int8"), "this is a checkpoint"),
    (("evaluate", "bundle", "--data", "data", "--precision", "fp16"), "--precision fp16: bundle has no fp16 model"),
    (("evaluate", "bundle", "--data", "data", "--metric", "f3"), "metric 'f3' does not judge"),
    (("evaluate", "encoder", "--glue", "--data", "data", *OUT, "--tasks", "sst3"), "'sst3' is no task of GLUE"),
    (("bench", "bundle", "--precision", "int4", *OUT), "--precision int4: input should be"),
    (("bench", "bundle", "--runner", "tensorflow", *OUT), "--runner tensorflow: input should be"),
    (("bench", "bundle", "--baseline", "other", *OUT), "--baseline other: no model is called so"),
    (
        ("bench", "bundle", "--require", "sped", *OUT),
        "--require sped: no claim is called 'sped'; did you mean 'speed'?",
    ),
    (("serve", "bundle@int9"), "asks for the precision 'int9'; there are fp32"),
    (("serve", "bundle", "--shadow", "other"), "--shadow is 'other'"),
    (("predict", "bundle", "texts.csv", "--out", "a.csv", "--precision", "fp16"), "bundle has no fp16 model"),
    (("predict", "bundle", "texts.csv", "--out", "a.csv", "--parameters", "{"), "--parameters is not JSON"),
    (("predict", "bundle", "texts.csv", "--out", "a.csv", "--on-error", "no"), "'no' is not one of 'fail', 'skip'"),
    # vocabularies
    (("trim", "techer", *TRAIN), "did you mean teacher?"),
    (("trim", "teacher", "--data", "dta", *OUT), "did you mean data?"),
    (("trim", "teacher", *TRAIN, "--other-data", "dta"), "did you mean data?"),
    (("trim", "teacher", "--data", "data", "--out", "full"), "full is not empty; pass --overwrite"),
    (("trim", "encoder", *TRAIN, "--task", "text-classification"), "encoder is an encoder without a head"),
    (("trim", "teacher", *TRAIN, "--vocabulary", "few"), "--vocabulary few: must be task, a size such as 9000, or"),
    (("trim", "pieces", *TRAIN, "--vocabulary", "2"), "--vocabulary 2: a vocabulary of 2 cannot be", "ask for 5 to 5"),
    (("trim", "words", *TRAIN), "words has a tokenizer of kind WordLevel", "would become unknown"),
    (("distill", "teacher", *TRAIN, "--vocabulary", "min-count"), "--vocabulary min-count: must be task, a size"),
    (("distill", "pieces", *TRAIN, "--vocabulary", "9000"), "--vocabulary 9000: a vocabulary of 9,000 cannot be"),
    (("run", "quickstart", *OUT, "--set", "student.vocabulary=0"), "student.vocabulary=0: must be task"),
    (("init", "teacher", *OUT, "--set", "student.vocabulary=9"), "a vocabulary is trimmed to data"),
    # data
    (("distill", "teacher", *TRAIN, "--set", "data.label_column=labl"), "no column 'labl'; it has sentence, label"),
    (("distill", "teacher", *TRAIN, "--set", "data.text_columns=[review]"), "no column 'review'"),
    (("evaluate", "teacher", "--data", "data", "--split", "test"), "data has no test"),
    (("evaluate", "teacher", "--data", "data", "--label-column", "labl"), "no column 'labl'"),
    (("export", "teacher", *OUT, "--data", "data", "--split", "trian"), "data has no trian"),
    (("export", "teacher", *OUT, "--label-column", "label"), "--data, which is missing"),
    (("bench", "bundle", "--data", "data", "--split", "test", *OUT), "data has no test split"),
    # outputs
    (("distill", "teacher", "--data", "data", "--out", "full"), "full is not empty; pass --overwrite"),
    (("distill", "teacher", "--data", "data", "--out", "texts.csv"), "texts.csv is a file"),
    (("distill", "teacher", "--data", "data", "--out", "texts.csv/out"), "is a file, so"),
    (("distill", "teacher", "--data", "data", "--out", "/dev/null/out"), "is a file, so /dev/null/out cannot be made"),
    (("finetune", "teacher", "--data", "data", "--out", "full"), "full is not empty; pass --overwrite"),
    (("init", "teacher", "--out", "full"), "full is not empty; pass --overwrite"),
    (("export", "teacher", "--out", "full"), "full is not empty; pass --overwrite"),
    (("bench", "bundle", "--out", "full"), "full is not empty; pass --overwrite"),
    (("run", "quickstart", "--out", "full"), "full is not empty; pass --overwrite"),
    (("evaluate", "encoder", "--glue", "--data", "data", "--out", "full"), "full is not empty; go on"),
    (("evaluate", "teacher", "--data", "data", "--confusion", "m.jpg"), "must end in .png or .svg"),
    (("evaluate", "teacher", "--data", "data", "--predictions", "no/a.jsonl"), "there is no folder no"),
    (("evaluate", "multi", "--data", "data", "--confusion", "m.png"), "--confusion draws single labels"),
    (("evaluate", "mask-bundle", "--data", "data", "--predictions", "a.jsonl"), "fill-mask guesses words"),
    (("predict", "bundle", "texts.csv", "--out", "no/a.csv"), "there is no folder no"),
    (("predict", "bundle", "texts.csv", "--out", "a.txt"), "must end in .jsonl, .csv or .parquet"),
    (("predict", "bundle", "texts.csv", "--out", "texts.csv"), "texts.csv is there already; pass --overwrite"),
    (("recipes", "sst2", "--copy", "no/mine.yaml"), "--copy: there is no folder no"),
    (("recipes", "sst2", "--copy", "full"), "--copy full exists"),
    # what is missing or misspelt on the command line itself
    (("distill", "teacher", "--data", "data"), "pass --out FOLDER"),
    (("distill", "--data", "data", *OUT), "TEACHER is missing"),
    (("distill", "teacher", *OUT), "--data is missing"),
    (("export", "teacher"), "missing option '--out'; see `potstill export --help`"),
    (("export", "teacher", *OUT, "--percision", "int8"), "no such option: --percision; did you mean --precision?"),
    (("export", "teacher", "other", *OUT), "unexpected extra argument(s) (other)"),
    (("serve", "bundle", "--port", "99999"), "invalid value for '--port': it should be less than or equal to 65535"),
    (("serve",), "missing argument 'BUNDLE'"),
    (("bench", "bundle"), "name the models and a folder"),
    (("sevre",), "did you mean 'serve'?", "see `potstill --help`"),
    (("run", "sst3", *OUT), "did you mean 'sst2'?"),
    (("recipes", "nope"), "there is no recipe 'nope'"),
    (("claims", "--claims", "no.yaml"), "no.yaml cannot be read"),
    (("doctor", "--jsn"), "did you mean --json?"),
]


def write_checkpoint(folder, *, architecture, **config):
    folder.mkdir()
    content = {"architectures": [architecture], "model_type": "bert", "num_hidden_layers": 6} | config
    (folder / "config.json").write_text(json.dumps(content))
    # No weights, for nobody may come so far as to read them; its header is read, and names none.
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


def make_place(folder):
    """Make everything that the commands name: small files that only look like models."""
    labels = {"id2label": {"0": "negative", "1": "positive"}, "max_position_embeddings": 512}
    write_checkpoint(folder / "teacher", architecture="BertForSequenceClassification", **labels)
    write_checkpoint(folder / "encoder", architecture="BertModel")
    several = labels | {"problem_type": "multi_label_classification"}
    write_checkpoint(folder / "multi", architecture="BertForSequenceClassification", **several)
    write_checkpoint(folder / "masked", architecture="BertForMaskedLM")
    roberta = labels | {"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 1}
    write_checkpoint(folder / "roberta", architecture="RobertaForSequenceClassification", **roberta)
    for name, kind in (("pieces", "WordPiece"), ("words", "WordLevel")):
        write_checkpoint(folder / name, architecture="BertForSequenceClassification", **labels)
        pieces = {"[UNK]": 0, "a": 1, "##a": 2, "b": 3, "##b": 4, "ab": 5}
        model = {"type": kind, "vocab": pieces, "unk_token": "[UNK]"}
        model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100} if kind == "WordPiece" else {}
        (folder / name / "tokenizer.json").write_text(
            json.dumps({"version": "1.0", "added_tokens": [], "model": model})
        )
    write_checkpoint(folder / "junk", architecture="BertModel")
    (folder / "junk" / "config.json").write_text("{")
    sealed.write_folder(folder / "bundle")
    mask = sealed.write_folder(folder / "mask-bundle")
    sealed.edit(mask, lambda manifest: manifest.update(task="fill-mask", labels=[]))
    (folder / "data").mkdir()
    for split in ("train", "validation"):
        rows = [{"sentence": f"a text {number}", "label": number % 2} for number in range(20)]
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.csv").write_text("text\na text\n")
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run every bad command, each in a process that cannot import torch; return exit code, stdout, stderr."""
    folder = tmp_path_factory.mktemp("cheap")
    make_place(folder)
    before = tree(folder)
    # Without a network, and without waiting for one: nobody listens on that port.
    online = {"HF_HUB_OFFLINE": "", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / ".hub")}
    found = run_all([{"argv": arguments, "cwd": str(folder), "env": online} for arguments, *_ in BAD])
    shutil.rmtree(folder / ".hub", ignore_errors=True)
    assert tree(folder) == before
    return dict(zip((" ".join(arguments) for arguments, *_ in BAD), found, strict=True))


@pytest.mark.parametrize("case", BAD, ids=[" ".join(arguments) for arguments, *_ in BAD])
def test_a_bad_command_is_refused_in_one_line_before_torch_is_imported(results, case):
    arguments, *said = case
    code, out, err = results[" ".join(arguments)]
    assert code != LOADED_HEAVY, err
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1, err
    for words in said:
        assert words.lower() in err.lower()


def test_a_hub_that_nobody_reaches_is_said_at_once_and_with_its_address(results):
    err = results[" ".join(("run", "sst2", *OUT))][2]
    assert "the hub cannot be reached to look for it (http://127.0.0.1:9: " in err


def test_every_printed_command_that_makes_a_teacher_is_one_that_the_command_line_takes(results):
    err = results[" ".join(("distill", "encoder", *TRAIN))][2]
    (printed,) = re.findall(r"`(potstill [^`]*)`", err)
    assert printed == (
        "potstill finetune encoder --task text-classification --data data --out encoder-text-classification"
    )


@pytest.fixture(scope="module")
def helps():
    jobs = [
        {"argv": [*command, "--help"], "cwd": str(ROOT), "env": {"COLUMNS": "100"}}
        for command in [(), *((name,) for name in COMMANDS)]
    ]
    return dict(zip(("", *COMMANDS), run_all(jobs), strict=True))


def test_the_list_of_commands_is_not_cut_off(helps):
    code, out, _ = helps[""]
    assert code == 0
    assert "Measure what was gained and lost, and decide the claims." in " ".join(out.split())
    assert "..." not in out.partition("Commands:")[2]
    assert all(option in out for option in ("--install-completion", "--show-completion"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_goes_in(helps, command):
    code, out, _ = helps[command]
    assert code == 0
    assert not re.search(r"<\w+(\[\w+\])?( range)?>|(?<!=)\bVALUE\b", out)


def test_completion_answers_in_the_words_of_the_shell():
    ask = {"cwd": str(ROOT), "argv": []}
    complete = {"_POTSTILL_COMPLETE": "complete_bash"}
    jobs = [
        ask | {"env": complete | {"COMP_WORDS": "potstill ex", "COMP_CWORD": "1"}},
        ask | {"env": complete | {"COMP_WORDS": "potstill export --prec", "COMP_CWORD": "2"}},
        ask | {"argv": ["--show-completion", "zsh"], "env": {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}},
    ]
    first, second, script = run_all(jobs)
    assert [out.split() for _, out, _ in (first, second)] == [["export"], ["--precision"]]
    assert (script[0], "compdef _potstill_completion potstill" in script[1]) == (0, True)


EXTRAS = [
    ("from potstill.distill import distill", "torch", "distill"),
    ("from potstill.distill.student import create_student", "torch", "distill"),
    ("from potstill.export import export_bundle", "torch", "export"),
    ("from potstill.export.graph import build_graph", "torch", "export"),
    ("from potstill.checkpoint import load_checkpoint", "torch", "distill"),
    ("from potstill.bench import bench", "onnxruntime", "bench"),
    ("from potstill.bench import bench", "scipy", "bench"),
    ("from potstill.serve import Encoder", "onnxruntime", "serve"),
    ("from potstill.serve import Encoder", "tokenizers", "serve"),
    ("from potstill.serve.http import create_app", "prometheus_client", "serve"),
]


@pytest.fixture(scope="module")
def imports():
    jobs = [{"code": code, "cwd": str(ROOT), "missing": [module]} for code, module, _ in EXTRAS]
    return dict(zip(((code, module) for code, module, _ in EXTRAS), run_all(jobs), strict=True))


@pytest.mark.parametrize(("code", "module", "extra"), EXTRAS)
def test_a_missing_extra_is_named_with_its_pip_line_from_python_too(imports, code, module, extra):
    _, _, err = imports[code, module]
    last = err.strip().splitlines()[-1]
    assert last.startswith("potstill.errors.MissingExtraError: ")
    assert f"{module} is not installed" in last
    assert last.endswith(f"pip install 'potstill[{extra}]'")


def test_the_command_that_a_copied_recipe_is_run_with_is_whole(tmp_path):
    ((code, out, err),) = run_all([{"argv": ["recipes", "sst2", "--copy", "my own.yaml"], "cwd": str(tmp_path)}])
    assert (code, err) == (0, "")
    assert out == "wrote my own.yaml; run it with: potstill run 'my own.yaml' --out 'out/my own'\n"
