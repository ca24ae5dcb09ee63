"""A plan as lines of aligned text: a block per dataset, a block per model, the totals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.config.metrics import FUSED_ABOVE
from jobs.plan.limits import PRICE_1000_PUTS, PRICE_GB_MONTH, Rates, size, speed
from jobs.plan.plan import DatasetPlan, PairPlan, Plan
from jobs.words import counted

_GIB = 1 << 30
_BASES = {
    "prepared": "as prepared",
    "counted": "every row read",
    "sampled": "estimated from a sample",
    "bound": "at most: the texts are not at hand",
}


def told(plan: Plan, rates: Rates) -> Iterator[str]:
    """Yield the lines of a plan."""
    kind = "some of it upper bounds, as said" if plan.is_bound else "estimates"
    yield f"plan of {plan.run} ({kind})"
    for dataset in plan.datasets:
        yield ""
        yield from _dataset(plan, dataset)
    for subject in dict.fromkeys(each.subject for each in plan.pairs):
        yield ""
        yield from _model(plan, subject)
    yield ""
    yield from _totals(plan, rates)


def _dataset(plan: Plan, dataset: DatasetPlan) -> Iterator[str]:
    yield (
        f"  {dataset.name}: {counted(dataset.prompts, 'prompt')} in "
        f"{counted(dataset.shards, 'shard')} ({_BASES[dataset.basis]})"
    )
    found = {
        place.table: each
        for place, each in plan.weights.items()
        if (place.subject, place.dataset) == ("", dataset.name)
    }
    if dataset.basis == "bound":
        yield "    not counted: texts and tasks; run `layerrank prepare` to know them"
    yield from _aligned([(name, each.objects, each.bytes) for name, each in found.items()])


def _model(plan: Plan, subject: str) -> Iterator[str]:
    pairs = [each for each in plan.pairs if each.subject == subject]
    many = pairs[0].checkpoints > 1
    yield f"  {subject}: {pairs[0].layers} layers" + (
        f", {pairs[0].checkpoints} checkpoints" if many else ""
    )
    for each in pairs:
        most = "" if each.counted else " at most"
        yield (
            f"    over {each.dataset}: {each.passes:,} forward passes in "
            f"{counted(each.conditions, 'condition')}, {_tokens(each.tokens)} tokens{most}"
        )
        yield f"      token metrics {_token_metrics(each)}"
        every = size(each.every_token_bytes)
        yield (
            f"      (every prompt's states: at most {every}; fused by default above "
            f"{size(FUSED_ABOVE)})"
        )
    tables: dict[str, tuple[int, float]] = {}
    for place, found in plan.weights.items():
        if place.subject == subject:
            objects, total = tables.get(place.table, (0, 0.0))
            tables[place.table] = objects + found.objects, total + found.bytes
    yield from _aligned([(name, *found) for name, found in tables.items()])


def _totals(plan: Plan, rates: Rates) -> Iterator[str]:
    total, rate = plan.total, speed(plan, rates.tokens_per_second)
    month = total.bytes / _GIB * rates.gb_month
    puts = total.puts / 1000 * rates.thousand_puts
    how = "measured here" if plan.tokens_per_second and not rates.tokens_per_second else "assumed"
    report = plan.tables()["report"]
    yield f"  report: {counted(report.objects, 'object')}, {size(report.bytes)}"
    yield (
        f"  total: {plan.passes:,} forward passes, {_tokens(plan.tokens)} tokens, "
        f"{counted(total.objects, 'object')}, {size(total.bytes)}"
    )
    yield (
        f"  {_small(plan.hours(rate))} device-hours at {rate:,.0f} tokens/s "
        f"({how}; --tokens-per-second, --measure)"
    )
    defaults = (rates.gb_month, rates.thousand_puts) == (PRICE_GB_MONTH, PRICE_1000_PUTS)
    yield (
        f"  in S3 {_small(month)} USD a month and {_small(puts)} USD once for "
        f"{counted(total.puts, 'request')}"
    )
    yield (
        f"    at {rates.gb_month:g} USD per GB-month and {rates.thousand_puts:g} USD per 1,000 PUT"
        f"{' (assumed: S3 Standard, us-east-1)' if defaults else ''}"
    )


def _token_metrics(each: PairPlan) -> str:
    """Say where the token metrics of a plan are computed, and from how many token states."""
    stored = counted(each.token_plan.stored, "prompt")
    return {
        (False, False): "not measured",
        (False, True): f"from the stored states of {stored}",
        (True, False): "fused into the model actors, no token states stored",
        (True, True): f"fused into the model actors; states of {stored} stored",
    }[each.token_plan.fused, each.token_plan.stored > 0]


def _aligned(rows: Sequence[tuple[str, int, float]]) -> Iterator[str]:
    """Yield a line per table: its name, objects and bytes."""
    cells = [(name, f"{objects:,}", size(total)) for name, objects, total in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, objects, total in cells:
        noun = "object" if objects == "1" else "objects"
        yield (
            f"    {name.ljust(widths[0])}  {objects.rjust(widths[1])} {noun.ljust(7)}  "
            f"{total.rjust(widths[2])}"
        )


def _tokens(count: float) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,.0f}"  # noqa: PLR2004


def _small(amount: float) -> str:
    return f"about {amount:,.2f}" if amount >= 0.01 else "less than 0.01"  # noqa: PLR2004
