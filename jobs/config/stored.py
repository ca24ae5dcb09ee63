"""What a root knows of its runs: the config of each, with every default that it began with.

A root keeps the defaults of its first run until a config names the key: a later version may have
another default, and its nights go on as they began. `_layerrank/runs/NAME.yaml` is a run's config,
`given` the keys of it that were named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from pydantic import ValidationError

from layerrank.jobs.config.blocks import Block, ConfigError
from layerrank.jobs.config.printable import without_signatures
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.config.sealed import sealed, unsealed
from layerrank.storage.lock import Claim
from layerrank.storage.manifest import FORMAT, SettingsConflictError
from layerrank.storage.partition import RUNS
from layerrank.storage.root import Root

FOLDER = RUNS
# Where the work is done, and what is told of it: nothing in a table depends on it.
_ELSEWHERE = ("device", "workers", "threads", "batch_tokens")
# What the tables of a model over a dataset depend on.
_BLOCKS = (
    "seed",
    "extract",
    "views",
    "tokens",
    "measure",
    "probe",
    "curves",
    "conditions",
    "candidates",
)
# And what scores and slopes do of the block of the ranking.
_ASKED = ("norm", "pooling", "variant", "search", "level")
_UNNAMED = object()
Values = Mapping[str, Any]


def without_passwords(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    """Return a value without what may be secret in addresses."""
    if isinstance(value, Mapping):
        return {key: without_passwords(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_passwords(each) for each in value]
    return without_signatures(value) if isinstance(value, str) else value


def shown(config: RunConfig, *, given: bool = False) -> dict[str, Any]:
    """Return a config without its secrets: every key, or those that were named."""
    values = config.model_dump(mode="json", exclude={"storage"}, exclude_unset=given)
    found: dict[str, Any] = without_passwords(values)
    return found


def continued(config: RunConfig, root: Root) -> RunConfig:
    """Return the config of a run with the defaults that its root began with."""
    known = {each["name"]: each for each in stored(root)}
    first = min(known.values(), key=lambda each: each["number"], default=None)
    before = known.get(config.name, first)
    if before is None:
        return config
    given, now = config.model_dump(exclude_unset=True), shown(config)
    then = _completed(config, before["config"])
    merged = _inherited(given, now, then, before["given"])
    return config if merged == given else RunConfig.model_validate(merged)


def record(config: RunConfig, given: RunConfig, root: Root) -> None:
    """Keep the config of a run in its root, and what of it was given, before anything is made."""
    known = {each["name"]: each for each in stored(root)}
    mine = known.get(config.name, {"number": len(known) + 1, "version": version("layerrank")})
    written = {
        "format": FORMAT,
        "version": mine.get("version"),  # that it began with
        "number": mine["number"],
        "name": config.name,
        "given": shown(given, given=True),
        "config": shown(config),
    }
    if written != known.get(config.name):
        root.write(f"{FOLDER}/{config.name}.yaml", sealed(written))


def stored(root: Root) -> Iterator[dict[str, Any]]:
    """Yield what is known of every run of a root; a file that is not as it was written is none."""
    for name in root.sizes(FOLDER):
        found = unsealed(root.read(f"{FOLDER}/{name}"))
        if found and _is_of_a_run(found) and name == f"{found['name']}.yaml":
            yield found


def _is_of_a_run(found: Values) -> bool:
    """Whether values have the form of what `record` writes."""
    kinds = {"number": int, "name": str, "given": dict, "config": dict}
    if not all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
        return False
    lists = [
        found[key].get(name) for key in ("given", "config") for name in ("subjects", "datasets")
    ]
    return all(isinstance(each, list) and all(isinstance(b, dict) for b in each) for each in lists)


def given_of(kept: Values, root: Root) -> RunConfig:
    """Return a run that a root keeps as it was given; ConfigError if it cannot be read any more."""
    try:
        return RunConfig.model_validate(kept["given"])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{root.place(FOLDER)}/{kept['name']}.yaml is no config of a run: {key}: {first['msg']}"
        ) from None


def _completed(block: Block, then: Values) -> dict[str, Any]:
    """Return what a root keeps of a block and of those in it, with the keys that came later."""
    later = block.later()
    before = type(block).model_construct(None, **later).model_dump(mode="json", include={*later})
    found: dict[str, Any] = {}
    for name, each in block:
        if isinstance(each, Block) and not (name in later and name not in then):
            found[name] = _completed(each, then.get(name, {}))
        elif isinstance(each, tuple) and name in then:
            blocks = {_called(dict(b)): b for b in each if isinstance(b, Block)}
            found[name] = [
                _completed(blocks[_called(old)], old)
                if isinstance(old, dict) and _called(old) in blocks
                else old
                for old in then[name]
            ]
    return {**before, **then, **found}


def _inherited(given: Values, now: Values, then: Values, then_given: Values) -> dict[str, Any]:
    """Return what is given, and of what is not the values of `then` that are others `now`.

    What was named then and is no more has no default to keep.
    """
    found = dict(given)
    for key, value in now.items():
        old, old_given = then.get(key, value), then_given.get(key, _UNNAMED)
        if isinstance(value, dict) and isinstance(old, dict):
            under = _inherited(given.get(key) or {}, value, old, then_given.get(key) or {})
            found |= {key: under} if under or key in given else {}
        elif key in given and isinstance(value, list) and isinstance(old, list):
            known = {_called(each): each for each in old if isinstance(each, dict)}
            named = {
                _called(each): each for each in then_given.get(key) or () if isinstance(each, dict)
            }
            found[key] = tuple(
                _inherited(each, full, known.get(_called(full), {}), named.get(_called(full), {}))
                if isinstance(full, dict)
                else each
                for each, full in zip(given[key], value, strict=True)
            )
        elif key not in given and old_given is _UNNAMED and old != value:
            found[key] = old
    return found


def _called(block: Values) -> tuple[Any, ...]:
    """Return what tells a subject, a dataset or a task from the others.

    Of a path its end: an earlier version kept it as it was given, relative to some folder.
    """
    places = (str(block.get(key, "")).rsplit("/", 1)[-1] for key in ("model", "adapter"))
    return (*(str(block.get(key, "")) for key in ("name", "revision")), *places)


def require_no_conflict(config: RunConfig, root: Root, other: Claim) -> None:
    """SettingsConflictError if another run writes the same partitions with other settings now."""
    mine, theirs = shown(config), other.about
    if "name" not in theirs:
        raise SettingsConflictError(
            f"{root.uri} is being repaired ({other.lease.holder}); wait for its end"
        )
    try:
        pairs = _shared(mine, theirs)
    except (KeyError, TypeError, AttributeError):
        raise SettingsConflictError(
            f"another run ({other.lease.holder}) is at work on {root.uri}, and does not say with "
            "which settings; wait for its end, or choose another --output"
        ) from None
    if found := next(filter(None, (_first_difference(*pair) for pair in pairs)), ""):
        raise SettingsConflictError(
            f"another run ({other.lease.holder}) writes to {root.uri} now, with other settings: "
            f"{found}; wait for its end, or choose another --output"
        )


def _shared(mine: Values, theirs: Values) -> list[tuple[str, object, object]]:
    """Return what two runs say of the partitions that both write: key, mine, theirs."""
    pairs = [
        (f"datasets.{each['name']}", each, found)
        for each in mine["datasets"]
        for found in theirs["datasets"]
        if each["name"] == found["name"]
    ]
    shared = [
        (ours, each)
        for ours in mine["subjects"]
        for each in theirs["subjects"]
        if _is_one_model(ours, each)
    ]
    if pairs and shared:
        pairs += [(f"subjects.{a['model']}.dtype", a["dtype"], b["dtype"]) for a, b in shared]
        pairs += [
            (f"subjects.{a['model']}.adapter", a["adapter"], b.get("adapter", ""))
            for a, b in shared
        ]
        pairs += [(name, mine[name], theirs.get(name)) for name in _BLOCKS]
        asked = {name: mine["rank"][name] for name in _ASKED}
        pairs.append(("rank", asked, theirs["rank"]))
    if mine["name"] == theirs["name"]:
        pairs.append(("rank", mine["rank"], theirs.get("rank")))
    return pairs


def _is_one_model(one: Values, other: Values) -> bool:
    """Whether two subjects may be one in the tables; of a sweep any revision may be."""
    models = [each["model"] + each.get("adapter", "") for each in (one, other)]
    names = {each["name"] or whole for each, whole in zip((one, other), models, strict=True)}
    revisions = {each["revision"] for each in (one, other)} - {""}
    return len(revisions) < 2 and 1 in (len(names), len({*models}))  # noqa: PLR2004


def _first_difference(key: str, mine: object, theirs: object) -> str:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        names = [name for name in mine if name not in _ELSEWHERE]
        inner = (_first_difference(f"{key}.{n}", mine[n], theirs.get(n)) for n in names)
        return next(filter(None, inner), "")
    if isinstance(mine, list) and isinstance(theirs, list) and key.endswith(".tasks"):
        both = [(a, b) for a in mine for b in theirs if a["name"] == b["name"]]
        found = (_first_difference(f"{key}.{a['name']}", a, b) for a, b in both)
        return next(filter(None, found), "")
    return "" if mine == theirs else f"{key} is {theirs!r} there and {mine!r} here"
