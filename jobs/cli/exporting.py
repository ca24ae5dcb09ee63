"""What is taken out of an output: the model cut at a layer, the vectors of a layer."""

from __future__ import annotations

import argparse
from pathlib import Path

from layerrank.jobs.cli.looking import existing, is_output, root_at, storage_of
from layerrank.jobs.cluster.console import say
from layerrank.jobs.cluster.errors import DONE
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.settings import SubjectConfig


def export(arguments: argparse.Namespace) -> int:
    """Write the model cut at a layer, with what is done to its vectors."""
    if is_output(Path(arguments.out)):
        raise ConfigError(
            f"{arguments.out} is the output of runs: give a folder to write the model to, and "
            f"--ranking {arguments.out}"
        )
    from layerrank.jobs.export import MAX_TOKENS, Asked, ranked  # noqa: PLC0415
    from layerrank.jobs.export import export as exported  # noqa: PLC0415
    from layerrank.jobs.subjects import local, subject  # noqa: PLC0415
    from layerrank.operators.model.cut import CutPoint  # noqa: PLC0415

    storage, limit = storage_of(arguments), arguments.max_tokens
    given = {
        "revision": arguments.revision or "",
        "name": arguments.name or "",
        "adapter": arguments.adapter or "",
        "trust_remote_code": arguments.trust_remote_code,
    }
    described = SubjectConfig(model=arguments.subject, **given) if arguments.subject else None
    asked = Asked(*(getattr(arguments, name) for name in Asked._fields))
    evidence, prompts = None, dict[str, str]()
    if arguments.ranking:
        each, point, evidence, prompts = ranked(
            root_at(arguments.ranking, storage),
            storage,
            described=described,
            given=given,
            asked=asked,
            group=arguments.group,
            max_tokens=limit,
        )
    elif described is None:
        raise ConfigError("give --subject MODEL, or --ranking OUTPUT for the model that it is of")
    elif asked.layer is None:
        raise ConfigError("give --layer, or --ranking OUTPUT for the layer that it recommends")
    else:
        each = local(subject(described), storage)
        how = asked.norm or "final", asked.pooling or "mean"
        point = CutPoint(asked.layer, *how, limit or MAX_TOKENS, asked.transform or "raw")
    whole = each, point, arguments.out, evidence
    say(f"  {exported(*whole, prompts=prompts, overwrite=arguments.overwrite)}")
    if evidence and evidence.row.get("verdict") == "not_enough_evidence":
        say("  a guess: the ranking has not enough evidence for this layer")
    return DONE


def vectors(arguments: argparse.Namespace) -> int:
    """Write the vectors of one layer with their texts."""
    from layerrank.jobs.export import Asked  # noqa: PLC0415
    from layerrank.jobs.vectors import layer_vectors, save  # noqa: PLC0415

    asked = Asked(*(getattr(arguments, name) for name in Asked._fields))
    which = {name: getattr(arguments, name) for name in ("model", "revision", "dataset", "group")}
    found = layer_vectors(existing(arguments), asked, **which)
    model = found.subject.name.rpartition("/")[2]
    out = arguments.out or f"{model}-layer-{found.group.layer}.{arguments.to}"
    options = storage_of(arguments).options() if "://" in out else {}
    say(f"  {save(found, arguments.to, out, options, overwrite=arguments.overwrite)}")
    return DONE
