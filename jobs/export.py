"""export: the model cut at a layer, as a folder that other libraries load.

The folder gets its name only when it is whole and its vectors have been compared with a run's.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.config.printable import in_markdown
from layerrank.jobs.config.prompts import all_known, prefixes
from layerrank.jobs.config.settings import StorageConfig, SubjectConfig
from layerrank.jobs.config.stored import stored
from layerrank.jobs.probe.worker import fits_of
from layerrank.jobs.rank.ranking import ELSEWHERE
from layerrank.jobs.subjects import as_called, local, sides_of, subject
from layerrank.jobs.words import counted, known
from layerrank.operators.model.backend import load_backend
from layerrank.operators.model.cut import Cut, CutError, CutPoint, cut_model
from layerrank.operators.model.encode import Representations, encode, token_budget_batches
from layerrank.operators.model.known import require_readable
from layerrank.operators.model.on_transformers import LayerModel
from layerrank.operators.model.subject import Norm, Pooling, Subject, Transform
from layerrank.operators.model.tokenise import load_tokenizer, token_limit, tokenise
from layerrank.operators.probes import transform
from layerrank.storage.layers import Group
from layerrank.storage.manifest import Manifest, load
from layerrank.storage.partition import partitions
from layerrank.storage.root import Root, narrowed

# Two texts of different length, one that fills the usual limits and one that overflows them; and by
# itself a text of one token, if the tokenizer adds none: in many decoders the first is far larger.
SENTENCES = (
    (
        "Layers.",
        "Which layer of a language model gives the best vectors for a task is an empirical "
        "question.",
        "The states of the middle layers often hold more of what a task needs than the last. " * 12,
        "A text that is longer than the limit is cut where the run cut it. " * 60,
    ),
    ("a",),
)
_BATCH_TOKENS = 4096
# Largest difference from the run's vectors, in units of their largest value where that is above 1.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}
_LEAST_COSINE = 1 - 1e-6  # with the run's vectors, in float32


class Asked(NamedTuple):
    """What is asked of a candidate; None is what the ranking says of the layer, or recommends."""

    layer: int | None = None
    norm: Norm | None = None
    pooling: Pooling | None = None
    transform: Transform | None = None


AS_RANKED = Asked()
MAX_TOKENS = 512  # of a text, where nothing says another number


class Evidence(NamedTuple):
    """What a ranking says of a candidate: its row of a table, and where it is from.

    The row is of `ranking`, or of `candidates` where that of its layer is another.

    `tasks` is the number of tasks, `level` the coverage of the intervals (0..1).
    """

    run: str
    tasks: int
    level: float
    row: Mapping[str, Any]


class Exported(NamedTuple):
    """What was written; `max_difference` is how far its vectors are from the run's at most."""

    folder: Path
    point: CutPoint
    cut: Cut
    layers: int
    parameters: int
    parameters_whole: int
    bytes: int
    max_difference: float

    def __str__(self) -> str:
        return (
            f"{self.folder}: layer {self.point.layer} of {self.layers}, "
            f"{self.cut.dimension} dimensions, {self.parameters / 1e6:,.1f} of "
            f"{self.parameters_whole / 1e6:,.1f} M parameters, {self.bytes / (1 << 20):,.1f} MiB; "
            f"largest difference from the run's vectors {self.max_difference:.1e}"
        )


def export(
    subject: Subject,
    point: CutPoint,
    out: str | Path,
    evidence: Evidence | None = None,
    *,
    prompts: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the subject cut at `point` to the folder `out`, load it again and compare its vectors.

    `prompts` are the words before a text by what it is, which sentence-transformers then knows.

    ConfigError for a point that the model does not have, a model that cannot be cut, and an `out`
    that exists (unless `overwrite`, and it is an exported model) or cannot be written.
    ModelUnavailableError if the model cannot be loaded. RuntimeError if what was written gives
    other vectors. After an error no folder is left, and an existing `out` is as it was.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ConfigError(
            "export compares what it wrote through sentence-transformers, which is not installed: "
            "pip install 'layerrank[export]'"
        )
    folder = _checked(out, subject, overwrite=overwrite)
    shape = require_readable(subject)
    try:
        point.check(shape.layers)
        model = load_backend(subject, torch.device("cpu"))
        if not isinstance(model, LayerModel):
            raise CutError("only a model that transformers runs can be cut")
        tokenizer = load_tokenizer(subject)
        point = replace(point, max_tokens=token_limit(tokenizer, shape, point.max_tokens))
        with staged(folder) as made:
            cut = cut_model(model, tokenizer, point, made, prompts)
            difference = _verify(subject, model, tokenizer, point, made)
            counts = model.layer_parameters()
            parameters = counts[point.layer], counts[-1]
            size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
            facts = Exported(folder, point, cut, shape.layers, *parameters, size, difference)
            card = model_card(subject, facts, evidence)
            (made / "README.md").write_text(card, encoding="utf-8")
    except CutError as error:
        raise ConfigError(f"{subject}: {error}") from error
    return facts


def _checked(out: str | Path, subject: Subject, *, overwrite: bool) -> Path:
    if "://" in str(out):
        raise ConfigError(
            f"{out}: a model is exported to a folder of this machine; copy it from there"
        )
    folder = Path(out).resolve()
    for each in filter(None, (subject, subject.adapter)):
        if each.is_folder and Path(each.source).resolve().is_relative_to(folder):
            raise ConfigError(
                f"{out} holds the model that is to be exported; choose another folder"
            )
    if folder.exists() and not overwrite:
        raise ConfigError(f"{out} exists; choose another folder or give --overwrite")
    if folder.exists() and not (folder / "modules.json").is_file():
        raise ConfigError(f"{out} exists and is not an exported model; it is not overwritten")
    return folder


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that takes its place if the block ends without an error."""
    staged, before = (out.with_name(f".{out.name}.{os.getpid()}.{part}") for part in ("new", "old"))
    try:
        with narrowed():
            staged.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}") from error
    try:
        with narrowed():
            yield staged
        if out.exists():
            out.rename(before)
        try:
            staged.rename(out)
        except OSError:
            if before.exists():
                before.rename(out)
            raise
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _verify(
    subject: Subject,
    model: LayerModel,
    tokenizer: Any,  # noqa: ANN401  (transformers ships no types)
    point: CutPoint,
    folder: Path,
) -> float:
    """Return the largest difference between the folder's vectors and those of a run."""
    # Seconds to import, and only an extra brings it.
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    keep = Representations((point.norm,), (point.pooling,), _BATCH_TOKENS)
    exported = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    largest = 0.0
    # Without its top directions nothing but rounding may be left of a token that is far larger.
    for some in SENTENCES[:1] if point.transform == "abtt" else SENTENCES:
        tokens = tokenise(tokenizer, some, point.max_tokens).ids
        texts = [text for text, ids in zip(some, tokens, strict=True) if len(ids)]
        if not texts:
            continue
        ids = [each for each in tokens if len(each)]
        pooled_ND = encode(model, ids, keep)[point.layer]
        wanted_ND = transform.apply(pooled_ND, point.transform, point.fit)
        found_ND = np.empty_like(wanted_ND)
        # In the run's batches: a transform may enlarge what rounding differs between batches.
        for rows in token_budget_batches([*map(len, ids)], _BATCH_TOKENS):
            batch = [texts[row] for row in rows]
            found_ND[rows] = exported.encode(batch, batch_size=len(batch), show_progress_bar=False)
        difference = float(np.abs(found_ND - wanted_ND).max())
        allowed = _TOLERANCE[subject.dtype] * max(1.0, float(np.abs(wanted_ND).max()))
        cosine = least_cosine(found_ND, wanted_ND) if subject.dtype == "float32" else 1.0
        if not (difference <= allowed and cosine >= _LEAST_COSINE):
            raise RuntimeError(
                f"{subject} cut at layer {point.layer} gives other vectors than a run (norm: "
                f"{point.norm}, pooling: {point.pooling}, transform: {point.transform}): they "
                f"differ by {difference:.2g}, allowed is {allowed:.2g}, and have cosines from "
                f"{cosine:.8f} on; nothing was exported"
            )
        largest = max(largest, difference)
    return largest


def least_cosine(found_ND: transform.Vectors, wanted_ND: transform.Vectors) -> float:
    """Return the least cosine of two matrices' rows, 1 of equal ones, zero vectors too."""
    one_ND, two_ND = found_ND.astype(np.float64), wanted_ND.astype(np.float64)
    size_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(two_ND, axis=1)
    cosine_N = (one_ND * two_ND).sum(axis=1) / np.maximum(size_N, np.finfo(np.float64).tiny)
    return float(np.where((one_ND == two_ND).all(axis=1), 1.0, cosine_N).min())


_POOLED: dict[Pooling, tuple[str, str]] = {
    "mean": ("the mean over all tokens", "(states * mask).sum(1) / mask.sum(1)"),
    "mean_no_first": (
        "the mean over all tokens but the first, unless there is no other. sentence-transformers "
        "has no such pooling; modules 1 to 6 together are it",
        "(states * rest).sum(1) / rest.sum(1)",
    ),
    "first": ("the first token", "states[:, 0]"),
    "last": ("the last token", "states[range(len(texts)), batch.attention_mask.sum(1) - 1]"),
    "weighted_mean": (
        "the mean over all tokens, token t weighted by t",
        "(states * mask * mask.cumsum(1)).sum(1) / (mask * mask.cumsum(1)).sum(1)",
    ),
}
_TRANSFORMED: dict[Transform, str] = {
    "raw": "the pooled vectors as they are, not normalised",
    "l2": "each vector scaled to unit length",
    "z": "of every feature its mean is taken away, and it is divided by its standard deviation, "
    "both fitted on {texts:,} texts of the run without their labels",
    "abtt": "the mean of every feature is taken away, and what is left in the {directions} "
    "directions of largest variance, both fitted on {texts:,} texts of the run without their "
    "labels",
}
_NORMED = {
    False: "what the cut model outputs, its own final norm included if it has one",
    True: "the raw output, without the model's final norm. One more block with all weights zero, "
    "which changes nothing, stands behind it, so that `hidden_states` hold the raw output; "
    "`last_hidden_state` is the same with the final norm",
}
_CARD = """\
---
{front}---

# {title}, layer {point.layer} of {facts.layers}

This is {model} at revision {revision}{adapter}, cut after block {point.layer} of
{facts.layers} by LayerRank. It has {facts.parameters:,} of {facts.parameters_whole:,} parameters
and gives vectors with {cut.dimension} dimensions. Its licence is that of the model it is cut from.

## How the vectors are made

- Layer {point.layer}: {layer_text}.
- Norm `{point.norm}`: {norm_text}.
- Pooling `{point.pooling}`: {pooling_text}. Special tokens count.
- Transform `{point.transform}`: {transform_text}.
- Texts are cut to {point.max_tokens} tokens, special tokens included.
- Compared when it was written: the largest difference from the vectors of a LayerRank run is
  {facts.max_difference:.1e}.

## Why this layer

{evidence}

## Use

```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer({facts.folder.name!r}).encode(["A text.", "Another, longer text."])
```

Without sentence-transformers:

```python
import torch
{imports}from transformers import AutoModel, AutoTokenizer

texts = ["A text.", "Another, longer text."]
tokenizer = AutoTokenizer.from_pretrained({facts.folder.name!r})
model = AutoModel.from_pretrained({facts.folder.name!r})
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
mask = batch.attention_mask.unsqueeze(-1)
with torch.inference_mode():
    states = model(**batch{request}).{states}
{vectors}
```
"""


def model_card(subject: Subject, facts: Exported, evidence: Evidence | None) -> str:
    """Return README.md: what the model is, how its vectors are made, why this layer, its use."""
    point, cut = facts.point, facts.cut
    # The hub knows a base model by its id only; a folder or a package has none.
    on_hub = not subject.is_folder and ":" not in subject.model
    adapter = ""
    if subject.adapter:
        name = PurePosixPath(subject.adapter.name).name
        adapter = f" with the LoRA adapter {_code(name)} merged into it"
    front = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "layerrank"],
        **({"base_model": subject.source} if on_hub else {}),
    }
    pooling_text, pooled = _POOLED[point.pooling]
    directions = len(point.fit.direction_KD) if point.fit else 0
    raw = cut.hidden_state is not None
    return _CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        title=in_markdown(subject.name),
        model=_code(subject.model if on_hub else subject.name),
        revision=_code(subject.revision),
        adapter=adapter,
        facts=facts,
        point=point,
        cut=cut,
        layer_text=f"the output of block {point.layer}" if point.layer else "the embeddings",
        norm_text=_NORMED[cut.inert],
        pooling_text=pooling_text,
        transform_text=_TRANSFORMED[point.transform].format(
            texts=point.fitted_on, directions=directions
        ),
        evidence=_evidence_text(facts.layers, evidence),
        imports="from safetensors.torch import load_file\n"
        if point.transform in transform.FITTED
        else "",
        request=", output_hidden_states=True" if raw else "",
        states=f"hidden_states[{cut.hidden_state}]" if raw else "last_hidden_state",
        vectors="\n".join(_vectors_code(facts, pooled)),
    )


def _code(name: str) -> str:
    """Return a name as Markdown shows it, as code unless something in it would end that."""
    return f"`{name}`" if _PLAIN.fullmatch(name) else in_markdown(name)


def _vectors_code(facts: Exported, pooled: str) -> Iterator[str]:
    """Yield the lines that make vectors of states."""
    if facts.point.pooling == "mean_no_first":
        yield "rest = mask * ((mask.cumsum(1) > 1) | (mask.sum(1, keepdim=True) == 1))"
    yield f"vectors = {pooled}"
    if facts.point.transform == "l2":
        yield "vectors = torch.nn.functional.normalize(vectors)"
    if facts.point.transform in transform.FITTED:
        first, second = facts.cut.modules[-2:]
        yield f"""\
for module in ("{first}", "{second}"):
    weights = load_file({facts.folder.name!r} + f"/{{module}}/model.safetensors")
    vectors = torch.nn.functional.linear(
        vectors.float(), weights["linear.weight"], weights["linear.bias"]
    )"""


_PLAIN = re.compile(r"[\w./:@+=, -]*[\w./:@+=-]")  # what Markdown leaves as it is in code
_ADVICE = {  # by the verdict that recommends the layer
    "use_layer": "The ranking advises this layer on these tasks; of a new one it is not sure.",
    "keep_last": "The ranking keeps this layer, the last.",
    "not_enough_evidence": "The ranking has not enough evidence: this layer is a guess.",
}


def _evidence_text(layers: int, evidence: Evidence | None) -> str:
    if evidence and evidence.row.get("scored", 1.0) < 1:
        return (
            "These vectors were chosen by hand: the LayerRank run "
            f"{_code(evidence.run)} dropped them after {evidence.row['scored']:.0%} of their folds."
        )
    if evidence is None or math.isnan(evidence.row["score"]):
        return "No ranking was given of these vectors: they were chosen by hand."

    row, level = evidence.row, f"{100 * evidence.level:g}% interval"

    def interval(of: str, where: str) -> list[str]:
        low, high = row.get(f"{of}_low"), row.get(f"{of}_high")
        there = known(low) and known(high)
        return [f"{level} on {where} {low:.4f} to {high:.4f}"] if there else []

    def cited(value: str, said: list[str]) -> str:
        return f"{value} ({'; '.join(said)})." if said else f"{value}."

    score = cited(f"{row['score']:.4f}", interval("score", "these tasks"))
    lines = [f"- Mean score over {counted(evidence.tasks, 'task')}: {score}"]
    if not math.isnan(row["gain"]):
        said = [*interval("here", "these tasks"), *interval("gain", "a new task")]
        gain = row["gain"]
        if known(row.get("gain_chosen")):  # not flattered by having been chosen
            gain, said = row["gain_chosen"], [f"{gain:+.4f} as it stands", *said]
        lines.append(f"- Gain over the last layer: {cited(f'{gain:+.4f}', said)}")
        plain = row.get("plain_gain")
        if known(plain) and plain != row["gain"]:
            asked = "- With the vectors that the run was asked to rank this layer gains"
            lines.append(f"{asked} {plain:+.4f}.")
    if row.get("recommended"):
        anywhere = row["verdict"] == "use_layer" and row.get("sure") == "new_task"
        advised = "The ranking advises this layer." if anywhere else _ADVICE[row["verdict"]]
        lines.append(f"- {advised}")
    if row["rank"] is not None:
        lines.append(f"- Rank {row['rank']} of {layers + 1} layers.")
    return "\n".join([*lines, f"- From the LayerRank run {_code(evidence.run)}."])


def ranked_point(
    root: Root, subject: Subject, asked: Asked, max_tokens: int, group: str | None = None
) -> tuple[CutPoint, Evidence | None]:
    """Return a candidate of a subject and what an output says of it, which a model card cites.

    What is not asked for is as the ranking has it: the recommended layer, the best vectors of it.
    There is no evidence of vectors that were no candidate. ConfigError if the output has no ranking
    of the subject, several, none of the layer, or has not fitted the transform for these vectors.
    """
    ranking = _ranking(root, subject, group)
    rows = _rows(root, ranking)
    layer = asked.layer
    wanted = (
        row for row in rows if (row["recommended"] if layer is None else row["layer"] == layer)
    )
    best = next(wanted, None)
    if best is None:
        layers = ", ".join(str(each["layer"]) for each in rows)
        raise ConfigError(f"{ranking.partition} has no layer {layer}; it has: {layers}")
    vectors = {"layer": best["layer"]}
    for name in ("norm", "pooling", "transform"):
        vectors[name] = getattr(asked, name) or best[name]
    others = load(root, ranking.partition.sibling("candidates"))
    found = [
        best,
        *(
            # Its rank and its verdict are among candidates.
            {**row, "plain_gain": best["plain_gain"], "rank": None, "recommended": False}
            for row in (_rows(root, others) if others else [])
        ),
    ]
    fit = {}
    if vectors["transform"] in transform.FITTED:
        fit = _fit(root, ranking, vectors)
    run, settings = ranking.partition.keys["group"], ranking.settings
    evidence = (
        Evidence(run, len(settings["tasks"]), settings["level"], row)
        for row in found
        if vectors.items() <= row.items()
    )
    return CutPoint(**vectors, max_tokens=max_tokens, **fit), next(evidence, None)


def ranked_subject(
    root: Root, storage: StorageConfig, group: str | None, given: Mapping[str, Any]
) -> SubjectConfig:
    """Return the model that an output ranks, as its config described it; `given` goes before that.

    ConfigError if it ranks several, unless `given` names one, or does not know where it was.
    """
    asked = {key: value for key, value in given.items() if value}
    named = {"model": asked.get("name"), "revision": asked.get("revision")}
    found = [
        where.keys
        for where in partitions(root, "ranking")
        if all(value in (None, where.keys[key]) for key, value in named.items())
        and group in (None, where.keys["group"])
    ]
    models = {(keys["model"], keys["revision"]) for keys in found}
    if len(models) != 1:
        shown = ", ".join(sorted(f"{name} at {revision}" for name, revision in models)) or "none"
        raise ConfigError(f"{root.uri} ranks {shown}: give --name and --revision of one")
    name, revision = models.pop()
    for run in (each for each in stored(root) if each["name"] in {key["group"] for key in found}):
        for of in run["given"]["subjects"]:
            each = SubjectConfig.model_validate(of)
            if "***" in each.model:  # a secret was taken out of it
                continue
            if described := as_called(each, name, revision, storage):
                return described.model_copy(update=asked)
    raise ConfigError(f"{root.uri} does not say where {name} at {revision} lies: give --subject")


def ranked(
    root: Root,
    storage: StorageConfig,
    *,
    described: SubjectConfig | None = None,
    given: Mapping[str, Any],
    asked: Asked = AS_RANKED,
    group: str | None = None,
    max_tokens: int | None = None,
) -> tuple[Subject, CutPoint, Evidence | None, dict[str, str]]:
    """Return what `export` takes of a candidate that an output ranks: the best, or as `asked`.

    The model is the one `described`, or that of the output; the last are the words before texts.
    """
    each = local(subject(described or ranked_subject(root, storage, group, given)), storage)
    kept = run_of(root, each, group)
    limit = max_tokens or (kept["config"]["extract"]["max_tokens"] if kept else MAX_TOKENS)
    point, evidence = ranked_point(root, each, asked, limit, group)
    return each, point, evidence, run_prompts(kept, each, storage)


def run_of(root: Root, subject: Subject, group: str | None = None) -> Mapping[str, Any] | None:
    """Return what an output keeps of the run of a subject's ranking; None if nothing."""
    name = _ranking(root, subject, group).partition.keys["group"]
    return next((each for each in stored(root) if each["name"] == name), None)


def run_prompts(
    kept: Mapping[str, Any] | None, subject: Subject, storage: StorageConfig
) -> dict[str, str]:
    """Return the words that stood before queries and documents in a run, if any."""
    given = [each for each in kept["given"]["datasets"] if each.get("prompts")] if kept else []
    datasets = [DatasetConfig.model_validate(each) for each in given]
    if not all(map(all_known, datasets)):  # so it is not known either what all agree on
        return {}
    return prefixes([side for each in datasets for side in sides_of(subject, each, storage)])


def _ranking(root: Root, subject: Subject, group: str | None) -> Manifest:
    found = [
        ranking
        for where in partitions(root, "ranking")
        if (where.keys["model"], where.keys["revision"]) == (subject.name, subject.revision)
        and group in (None, where.keys["group"])
        and (ranking := load(root, where))
    ]
    if not found:
        keys = [each.keys for each in partitions(root, "ranking")]
        known = [f"{each['model']} at {each['revision']} (group {each['group']})" for each in keys]
        asked = f"{subject}{f' (group {group})' if group else ''}"
        raise ConfigError(
            f"{root.uri} has no ranking of {asked}; it has: {', '.join(known) or 'none'}"
        )
    if len(found) > 1:
        groups = ", ".join(each.partition.keys["group"] for each in found)
        raise ConfigError(f"{root.uri} has several rankings of {subject}: {groups}; give --group")
    return found[0]


def _rows(root: Root, table: Manifest) -> list[dict[str, Any]]:
    """Return the rows of a ranking.

    Those of an earlier version are of vectors as they are, those of scores from elsewhere of what
    is usual.
    """
    found = []
    for row in table.only(root).read().to_pylist():
        usual = {"norm": "final", "pooling": "mean"} if row["norm"] == ELSEWHERE.norm else {}
        found.append(
            {"plain_gain": None, **row, **usual, "transform": row.get("transform") or "raw"}
        )
    return found


def _fit(root: Root, ranking: Manifest, vectors: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run fitted for some vectors, and on how many texts."""
    manifest = load(root, ranking.partition.sibling("transforms"))
    fits = fits_of(root, manifest) if manifest else {}
    group = Group(vectors["layer"], vectors["norm"], vectors["pooling"])
    if manifest is None or group not in fits:
        raise ConfigError(
            f"the transform {vectors['transform']} was not fitted in {root.uri} for layer "
            f"{group.layer}, norm {group.norm}, pooling {group.pooling}: run it with that among "
            "`candidates` of its config, or give --transform raw or l2"
        )
    texts = manifest.only(root).read(["n_prompts"])["n_prompts"][[*fits].index(group)]
    return {"fit": fits[group], "fitted_on": texts.as_py()}
