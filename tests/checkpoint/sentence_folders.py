"""sentence-transformers folders as its versions write them, and its rule written out text by text."""

import json
import shutil

import torch
from safetensors.torch import save_file

OLD_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def write_json(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def old_pooling(*modes, width=32):
    """Return 1_Pooling/config.json as before version 6: a flag for each mode."""
    return {"word_embedding_dimension": width} | {flag: mode in modes for mode, flag in OLD_FLAGS.items()}


def new_pooling(*modes, width=32):
    """Return 1_Pooling/config.json as from version 6 on."""
    named = modes[0] if len(modes) == 1 else list(modes)
    return {"embedding_dimension": width, "pooling_mode": named, "include_prompt": True}


def make_folder(folder, pooling, *layers, encoder=None, longest=None, prompts=None, pickled=False):
    """Write the files beside an encoder's, which are copied from `encoder` if it is given; return the folder.

    Each of `layers` is a module's name, its settings and its weights by name.
    """
    if encoder is not None:
        shutil.copytree(encoder, folder, dirs_exist_ok=True)
    modules = [("Transformer", "", {}, {}), ("Pooling", "1_Pooling", pooling, {})]
    modules += [(kind, f"{number}_{kind}", about, state) for number, (kind, about, state) in enumerate(layers, start=2)]
    rows = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path, _, _) in enumerate(modules)
    ]
    write_json(folder / "modules.json", rows)
    for _, path, about, state in modules[1:]:
        (folder / path).mkdir(exist_ok=True)
        if about:
            write_json(folder / path / "config.json", about)
        if state and pickled:
            torch.save(state, folder / path / "pytorch_model.bin")
        elif state:
            save_file(state, folder / path / "model.safetensors")
    if longest is not None:
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    if prompts is not None:
        write_json(folder / "config_sentence_transformers.json", prompts)
    return folder


def dense(entering, leaving, *, activation="torch.nn.modules.activation.Tanh", bias=True, seed=0, **more):
    """Return a Dense module with random weights."""
    generator = torch.Generator().manual_seed(seed)
    state = {"linear.weight": torch.randn(leaving, entering, generator=generator) / entering**0.5}
    if bias:
        state["linear.bias"] = torch.randn(leaving, generator=generator)
    about = {"in_features": entering, "out_features": leaving, "bias": bias, "activation_function": activation}
    return "Dense", about | more, state


def pooled(states, mode):
    """Return one text's vector of its tokens' vectors, (tokens, width), none of them padding; sums in float64."""
    states = states.double()
    count = len(states)
    if mode == "cls":
        return states[0]
    if mode == "lasttoken":
        return states[count - 1]
    if mode == "max":
        return torch.stack([max(states[:, column]) for column in range(states.shape[1])])
    if mode == "weightedmean":
        return sum((number + 1) * states[number] for number in range(count)) / sum(range(1, count + 1))
    total = sum(states[number] for number in range(count))
    return total / count if mode == "mean" else total / count**0.5
