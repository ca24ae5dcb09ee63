"""What an output holds, is asked, and is rid of: status, repair, query."""

from __future__ import annotations

import argparse

from layerrank.jobs.cluster.console import answer
from layerrank.jobs.cluster.errors import DONE
from layerrank.jobs.config.run import load
from layerrank.jobs.config.settings import StorageConfig
from layerrank.storage.root import Root


def status(arguments: argparse.Namespace) -> int:
    """Say what every partition of an output holds; DONE if all are complete and as written."""
    from layerrank.jobs.upkeep import status as told  # noqa: PLC0415

    return told(existing(arguments), verify=arguments.verify)


def repair(arguments: argparse.Namespace) -> int:
    """Delete what is damaged in an output, or what no config of it asks for."""
    from layerrank.jobs.upkeep import prune, repair  # noqa: PLC0415
    from layerrank.storage.lock import Claim, LockHeldError, claimed  # noqa: PLC0415

    root = existing(arguments)

    def refuse(other: Claim) -> None:
        raise LockHeldError(f"{other.lease.holder} is at work on {root.uri}; wait for its end")

    with claimed(root, {}, refuse):
        return prune(root) if arguments.prune else repair(root)


def query(arguments: argparse.Namespace) -> int:
    """Answer a query."""
    from layerrank.storage.sql import connect  # noqa: PLC0415

    with connect(existing(arguments)) as connection:
        relation = connection.sql(arguments.sql)
        if relation is not None:
            for line in str(relation).rstrip().split("\n"):
                answer(line)
    return DONE


def existing(arguments: argparse.Namespace) -> Root:
    """Return the root that a command is given; FormatError if this version does not read it."""
    from layerrank.storage.manifest import require_format  # noqa: PLC0415

    root = Root(arguments.output, storage_of(arguments).options())
    require_format(root)
    return root


def storage_of(arguments: argparse.Namespace) -> StorageConfig:
    """Return how object storage is reached: as the config says that a command is given."""
    return load(arguments.config).storage if arguments.config else StorageConfig()
