"""What users of llama.cpp and Ollama type here, and what it is called: the hint of an option that is none."""

from __future__ import annotations

from collections.abc import Sequence

_MODEL = "MODEL stands without an option: `{command} MODEL`"
_DRIVE = "leave it out: EdgeMoE reads experts itself, and keeps what `--memory` holds"
_KERNELS = "leave it out: the model and the processor decide"

# Spelling -> the words of the hint; {command} is what was run.
_KNOWN = {
    **dict.fromkeys(("-m", "--model"), _MODEL),
    **dict.fromkeys(("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"), "write `{command} hf:owner/repo[:file]`"),
    **dict.fromkeys(
        ("--ctx-size", "--num-ctx", "--num_ctx", "--context", "--max-model-len"), "it is `-c N` or `--ctx N`"
    ),
    **dict.fromkeys(
        ("--n-predict", "--predict", "--num-predict", "--num_predict", "--max-new-tokens", "--max_tokens"),
        "it is `-n N` or `--max-tokens N`",
    ),
    **dict.fromkeys(("--temperature",), "it is `--temp T`"),
    **dict.fromkeys(("--top_k", "--top_p", "--min_p"), "it is `--top-k`, `--top-p`, `--min-p`"),
    **dict.fromkeys(("--repeat_penalty", "--repetition-penalty"), "it is `--repeat-penalty X`"),
    **dict.fromkeys(("-s",), "it is `--seed N`"),
    **dict.fromkeys(("-sys", "--system-prompt", "-sysf"), "it is `--system TEXT`"),
    **dict.fromkeys(
        (
            "-ngl",
            "--gpu-layers",
            "--n-gpu-layers",
            "-dev",
            "-ot",
            "--override-tensor",
            "-ncmoe",
            "--n-cpu-moe",
            "-cmoe",
        ),
        "it is `--device auto` and `--gpu-memory SIZE`: how much of a GPU to use, not how many layers",
    ),
    **dict.fromkeys(("-ctk", "-ctv", "--cache-type-k", "--cache-type-v"), "it is `--kv-type f16` or `q8_0`"),
    **dict.fromkeys(("--mlock", "--no-mmap", "--mmap", "-mmp"), _DRIVE),
    **dict.fromkeys(("-fa", "--flash-attn", "-b", "--batch-size", "-ub", "--ubatch-size"), _KERNELS),
    **dict.fromkeys(("-i", "--interactive", "-cnv", "--conversation"), "to talk, use `edgemoe chat`"),
    **dict.fromkeys(("-no-cnv", "--no-conversation"), "to continue a text, use `edgemoe run --raw`"),
    **dict.fromkeys(("-np", "--parallel"), "leave it out: requests wait their turn (`--queue N`)"),
    **dict.fromkeys(("--alias", "-a"), "write `NAME=MODEL`"),
    **dict.fromkeys(("--n-threads", "--num-thread", "-tb"), "it is `-t N` or `--threads N`"),
    **dict.fromkeys(("--max-memory", "--mem", "--ram", "--limit"), "it is `--memory SIZE`"),
}


def hint_for(arguments: Sequence[str], error: Exception) -> str:
    """What to write instead, "" where that is not known. error: the parser's, for these arguments."""
    command = getattr(getattr(error, "ctx", None), "command_path", "edgemoe")
    name = command.rpartition(" ")[2]
    taken = _options(error)
    for argument in arguments:
        spelling = argument.partition("=")[0]
        if spelling not in taken and spelling in _KNOWN:
            return _KNOWN[spelling].format(command=command)
    if "unexpected extra argument" in str(error).lower() and name in ("run", "chat"):
        return f"the prompt goes to `-p`: `edgemoe run {arguments[1]} -p TEXT`" if len(arguments) > 1 else ""
    return ""


def _options(error: Exception) -> set[str]:
    """The spellings that the command takes itself."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    return {spelling for parameter in getattr(command, "params", ()) for spelling in getattr(parameter, "opts", ())}
