"""Checkpoints that are none, that lie, or that would run something."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.inputs.case import Case, config, model
from tests.faults.inputs.datasets import NOBODY

Change = Callable[[Path], object]
WEIGHTS = "model.safetensors"


def _keys(file: Path, **changes: Any) -> None:  # noqa: ANN401
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _stating(**changes: Any) -> Change:  # noqa: ANN401
    return lambda folder: _keys(folder / "config.json", **changes)


def _without(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def _with(name: str, content: Callable[[bytes], bytes]) -> Change:
    def change(folder: Path) -> None:
        old = (folder / name).read_bytes()
        (folder / name).write_bytes(content(old))

    return change


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _not_a_number(content: bytes) -> bytes:
    start = 8 + int.from_bytes(content[:8], "little")
    return content[:start] + b"\xff\xff\xff\x7f" * ((len(content) - start) // 4)


def _own_code(folder: Path) -> None:
    auto = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
    _keys(folder / "config.json", model_type="evil", auto_map=auto)
    (folder / "evil.py").write_text(f"open({str(folder / 'canary')!r}, 'w')\n")


def _own_tokenizer(folder: Path) -> None:
    auto = {"AutoTokenizer": ["evil.EvilTokenizer", None]}
    _keys(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto)
    (folder / "evil.py").write_text(f"open({str(folder / 'canary')!r}, 'w')\n")


def _chat(folder: Path) -> None:
    hostile = f"{{{{ cycler.__init__.__globals__.os.system('touch {folder / 'canary'}') }}}}"
    _keys(folder / "tokenizer_config.json", chat_template=hostile)


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    code = f"cos\nsystem\n(S'touch {folder / 'canary'}'\ntR."
    (folder / "pytorch_model.bin").write_bytes(code.encode())


def _adapter(folder: Path) -> None:
    given = {"base_model_name_or_path": "/etc", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(given))


def _outside(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "../../../etc/passwd"}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))


def _sweep(folder: Path) -> None:
    for name in ("step1", "step$2$", "step\\frac{3"):
        shutil.copytree(folder.parent / "m", folder.parent / "c" / name)


def _emptied(folder: Path) -> None:
    for each in folder.iterdir():
        each.unlink()


def _as(name: str, told: str, *says: str) -> Case:
    return model(name, None, *says, model=told)


CANARY = "FOLDER/m/canary"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
HUGE = (1 << 60).to_bytes(8, "little")
t5, vit = {"architectures": ["T5Model"]}, {"architectures": ["ViTModel"]}
TWO = [{"model": "MODEL", "name": "x"}] * 2
CASES: list[Case] = [
    _as("no such folder", "FOLDER/none", "FOLDER/none", "no files"),
    model("empty folder", _emptied, "FOLDER/m", "no files"),
    _as("hub without network", "no/such-model", "no/such-model"),
    _as("a file", "FOLDER/a.jsonl", "FOLDER/a.jsonl", "a file"),
    model("config.json is no JSON", _with("config.json", lambda _: b"{"), "m/config.json", "JSON"),
    model("config.json is a list", _with("config.json", lambda _: b"[]"), "config.json"),
    model("without config.json", _without("config.json"), "FOLDER/m", "config.json"),
    model("without a tokenizer", _without(*TOKENIZER), "FOLDER/m", "no tokenizer"),
    model("tokenizer.json cut off", _with("tokenizer.json", _half), "FOLDER/m", "tokenizer"),
    model("weights cut off", _with(WEIGHTS, _half), "FOLDER/m", WEIGHTS, "cut off"),
    model("weights empty", _with(WEIGHTS, lambda _: b""), "FOLDER/m", WEIGHTS),
    model("a header of 2^60", _with(WEIGHTS, lambda was: HUGE + was[8:]), "FOLDER/m", WEIGHTS),
    model(
        "a header that is no JSON",
        _with(WEIGHTS, lambda was: was[:8] + b"#" * (len(was) - 8)),
        *("FOLDER/m", WEIGHTS, "header"),
    ),
    model("weights all NaN", _with(WEIGHTS, _not_a_number), "tiny", "layer 0", "non-finite"),
    model("encoder-decoder", _stating(model_type="t5", **t5), "tiny", "encoder-decoder"),
    model("vision", _stating(model_type="vit", **vit), "tiny", "no text model"),
    model("unknown type", _stating(model_type="nonsense"), "FOLDER/m", "nonsense"),
    model("more blocks than weights", _stating(num_hidden_layers=5), "tiny", "layers.3"),
    model("no blocks", _stating(num_hidden_layers=0), "tiny", "num_hidden_layers", "0"),
    model("1e9 blocks", _stating(num_hidden_layers=10**9), "m", "num_hidden_layers", "1000000000"),
    model("1e9 features", _stating(hidden_size=10**9), "m", "hidden_size", "1000000000"),
    model("1e12 words", _stating(vocab_size=10**12), "m", "vocab_size", "1000000000000"),
    model("other width than its weights", _stating(hidden_size=64), "FOLDER/m", "other sizes"),
    model("smaller vocabulary", _stating(vocab_size=100), "tiny", "tokenizer", "100"),
    model("blocks as a word", _stating(num_hidden_layers="three"), "m", "hidden_layers", "three"),
    model("hidden_size negative", _stating(hidden_size=-32), "tiny", "hidden_size", "-32"),
    model(
        "width no multiple of heads", _stating(num_attention_heads=5), "FOLDER/m", "attention heads"
    ),
    model("code of its own", _own_code, "FOLDER/m", "trust_remote_code", canary=CANARY),
    model("tokenizer with code", _own_tokenizer, canary=CANARY),
    model("hostile chat template", _chat, canary=CANARY),
    model("a hostile pickle", _pickle, "pytorch_model.bin", "allow_pickle", canary=CANARY),
    model(
        "a hostile pickle, allow_pickle",
        _pickle,
        *("FOLDER/m", "pickled weights"),
        allow_pickle=True,
        canary=CANARY,
    ),
    model("an adapter beside it", _adapter, "tiny", "adapter_config.json", "adapter:"),
    model("index that names a file outside", _outside, "FOLDER/m", "etc/passwd"),
    _as("package not installed", "package:no_such_package/x", "no_such_package", "installed"),
    _as("package: and a path upwards", "package:numpy/../../../etc", "package:numpy", "etc"),
    _as("package: of nothing", "package:", "package:", "IMPORT_NAME"),
    _as("package: relative", "package:..x/y", "package:..x/y", "IMPORT_NAME"),
    _as("package: of a module within", "package:email.mime/x", "email.mime/x", "IMPORT_NAME"),
    model("called ..", None, name=".."),
    model("called .", None, name="."),
    model("called with slashes and a query", None, name="../a/b?c=%2F&d <b>"),
    model("called with a newline and an escape", None, name="a\nb\x1b[31mc"),
    model("called from right to left", None, name="a\u202eb"),
    model("name of 300 characters", None, "MODEL", "name", "300 characters", name="n" * 300),
    model("name with a NUL", None, name="a\0b"),
    model("name of math text", None, name="a$\\frac{$b_1^{2$"),
    model("revision a/b", None, revision="a/b"),
    model("revision of 300 characters", None, "MODEL", "revision", "300", revision="n" * 300),
    config("two models of a name", {"subjects": TWO}, "two subjects", "x"),
    model("sweep that matches nothing", None, "MODEL", "'step*'", revisions="step*"),
    model(
        "sweep of a hub id without network",
        None,
        *("EleutherAI/pythia-14m", "branches"),
        model="EleutherAI/pythia-14m",
        revisions="step*",
    ),
    model("revisions of math text", _sweep, model="FOLDER/c", revisions="step*"),
    model("--subject empty", None, "--subject", more=("--subject", "")),
    model("--subject with blanks", None, "--subject a b c", more=("--subject", "a b c")),
    model("--revisions empty", None, "--revisions", more=("--revisions", "")),
    model(
        "s3 without credentials",
        None,
        *("s3://no-such-bucket-lr/m", "credentials"),
        model="s3://no-such-bucket-lr/m",
        environment=NOBODY,
    ),
]
