"""A plan as lines of aligned text, and the error of one that is beyond its bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerrank.jobs.cluster.pool import TorchDevice
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.candidates import candidate_vectors
from layerrank.jobs.config.metrics import left_out
from layerrank.jobs.config.prompts import all_known
from layerrank.jobs.config.prompts import told as templates
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.plan.limits import (
    BFLOAT16_GAIN,
    PRICE_1000_PUTS,
    PRICE_GB_MONTH,
    Limits,
    bfloat16_unit,
    multiplies_float16,
)
from layerrank.jobs.prepare import records
from layerrank.jobs.prepare.files import told_delimiters
from layerrank.jobs.words import bytes_of, counted
from layerrank.operators.later import Later
from layerrank.storage.root import Root

if TYPE_CHECKING:
    from layerrank.jobs.plan.plan import Pair, Plan, plan
    from layerrank.jobs.plan.sampling import Weight
else:  # a run without limits makes no plan
    plan = Later("layerrank.jobs.plan.plan").plan

_GIB = 1 << 30
_BIGGEST = 3
_DEVICES = {"cpu": "CPU", "cuda": "GPU"}
_BASES = {
    "prepared": "as prepared",
    "counted": "every row read",
    "sampled": "estimated from a sample",
    "bound": "at most: the texts are not at hand",
}


def told(
    plan: Plan, tokens_per_second: float | None, gb_month: float, thousand_puts: float
) -> Iterator[str]:
    """Yield the lines of a plan, with the speed of a device as stated and prices in USD."""
    kind = "some of it upper bounds, as said" if plan.is_bound else "estimates"
    yield f"plan of {plan.run} ({kind})"
    for corpus in plan.corpora:
        name, prompts = corpus.dataset.name, corpus.prompts
        yield ""
        yield (
            f"  {name}: {counted(prompts.rows, 'prompt')} in "
            f"{counted(len(prompts.receipts), 'shard')} ({_BASES[corpus.basis]})"
        )
        if corpus.basis == "bound":
            yield "    not counted: texts and tasks; run `layerrank prepare` to know them"
        if not all_known(corpus.dataset):
            yield "    not counted: what tasks in modules of yours read in prompts"
        if corpus.delimiters:
            yield f"    {told_delimiters(corpus.delimiters)}"
        if corpus.aside:
            yield f"    {corpus.aside}"
        about = "about " if corpus.basis == "sampled" else ""
        for task, counts in corpus.tasks.items():
            yield f"    {task}: {about}{records.told(counts['items'], counts)}"
        yield from _tables(plan.tables("", name))
    for subject in dict.fromkeys(each.subject.name for each in plan.pairs):
        yield ""
        yield from _model(plan, subject)
    yield ""
    total, rate = plan.total, plan.speed(tokens_per_second)
    how = "measured here" if plan.tokens_per_second and not tokens_per_second else "assumed"
    report = plan.tables()["report"]
    yield f"  report: {counted(report.objects, 'object')}, {bytes_of(report.bytes)}"
    yield (
        f"  total: {plan.passes:,} forward passes, {_tokens(plan.tokens)} tokens, "
        f"{counted(total.objects, 'object')}, {bytes_of(total.bytes)}"
    )
    yield (
        f"  {_small(plan.tokens / rate / 3600)} device-hours at {rate:,.0f} tokens/s "
        f"({how}; --tokens-per-second, --measure)"
    )
    defaults = (gb_month, thousand_puts) == (PRICE_GB_MONTH, PRICE_1000_PUTS)
    yield (
        f"  in S3 {_small(total.bytes / _GIB * gb_month)} USD a month and "
        f"{_small(total.puts / 1000 * thousand_puts)} USD once for {counted(total.puts, 'request')}"
    )
    yield (
        f"    at {gb_month:g} USD per GB-month and {thousand_puts:g} USD per 1,000 PUT"
        f"{' (assumed: S3 Standard, us-east-1)' if defaults else ''}"
    )
    if plan.removed.objects:
        yield (
            f"  {bytes_of(plan.removed.bytes)} of these, vectors of views, go when their metrics "
            "stand (keep.views)"
        )


def _model(plan: Plan, subject: str) -> Iterator[str]:
    pairs = [each for each in plan.pairs if each.subject.name == subject]
    checkpoints = pairs[0].checkpoints
    yield f"  {subject}: {pairs[0].layers} layers" + (
        f", {checkpoints} checkpoints" if checkpoints > 1 else ""
    )
    yield from _passes(pairs[0])
    for each in pairs:
        yield (
            f"    over {each.corpus.dataset.name}: {each.forward:,} forward passes in "
            f"{counted(len(each.passes), 'condition')}, {_tokens(each.tokens)} tokens"
            f"{'' if each.lengths else ' at most'}"
            f"{'; about ' + counted(each.cut, 'text') + ' cut' if each.cut else ''}"
        )
        if each.fits:
            yield (
                f"      {each.fits:,} fits of probes, about, of "
                f"{counted(each.layers * len(candidate_vectors(each.config)), 'candidate')}"
            )
        for line in templates(each.corpus.dataset, each.sides):
            yield f"      {line}"
        # Where the token metrics are computed, and from how many token states.
        stored = counted(each.states.stored, "prompt")
        how = {
            (False, False): "not measured",
            (False, True): f"from the stored states of {stored}",
            (True, False): "fused into the model actors, no token states stored",
            (True, True): f"fused into the model actors; states of {stored} stored",
        }[each.states.fused, each.states.stored > 0]
        yield f"      token metrics {how}"
        yield f"      (every prompt's states: at most {bytes_of(each.every_state_bytes)})"
    if without := left_out(pairs[0].config):
        yield f"    {without}"
    yield from _tables(plan.tables(subject))


def _passes(pair: Pair) -> Iterator[str]:
    """Yield how many tokens go through a model at once, and what would make it faster."""
    extract = pair.config.extract
    kinds: Sequence[TorchDevice] = (
        ("cpu", "cuda") if extract.device == "auto" else (extract.device,)
    )
    if extract.batch_tokens:
        told = f"{extract.batch_tokens:,} padded tokens"
    else:
        sizes = [f"{pair.shape.batch_tokens(kind):,} on a {_DEVICES[kind]}" for kind in kinds]
        told = f"{' or '.join(sizes)}, in padded tokens"
    yield f"    batches of {told} (extract.batch_tokens)"
    unit = bfloat16_unit() if "cpu" in kinds and pair.subject.dtype == "float32" else ""
    if unit:
        yield (
            f"    in float32; this machine's CPU has {unit} for bfloat16: with `dtype: bfloat16` "
            f"of the subject about {BFLOAT16_GAIN} times as fast, with vectors that are off by 1 %"
        )
    if "cpu" in kinds and pair.subject.dtype == "float16" and not multiplies_float16():
        yield (
            "    in float16; this machine's CPU has nothing that multiplies it, and takes several "
            "times as long as with float32"
        )


def _tables(found: Mapping[str, Weight]) -> Iterator[str]:
    """Yield an aligned line per table: its name, objects and bytes."""
    cells = [(name, f"{each.objects:,}", bytes_of(each.bytes)) for name, each in found.items()]
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


def require_within(found: Plan, limits: Limits) -> None:
    """ConfigError that names the bound, the estimate and its biggest parts if a plan exceeds it."""
    kind = "at most" if found.is_bound else "about"
    if limits.bytes is not None and found.total.bytes > limits.bytes:
        tables = sorted(found.tables().items(), key=lambda pair: -pair[1].bytes)
        parts = (f"{name} {bytes_of(each.bytes)}" for name, each in tables[:_BIGGEST])
        raise ConfigError(
            f"{found.run} would write {kind} {bytes_of(found.total.bytes)}, and --max-bytes allows "
            f"{bytes_of(limits.bytes)}; most of it: {', '.join(parts)}"
        )
    rate = found.speed(limits.tokens_per_second)
    hours = found.tokens / rate / 3600
    if limits.gpu_hours is not None and hours > limits.gpu_hours:
        pairs = sorted(found.pairs, key=lambda each: -each.tokens)
        parts = (
            f"{each.subject.name} over {each.corpus.dataset.name} {each.tokens / rate / 3600:,.2f}"
            for each in pairs[:_BIGGEST]
        )
        raise ConfigError(
            f"{found.run} would take {kind} {hours:,.2f} device-hours at {rate:,.0f} tokens/s, and "
            f"--max-gpu-hours allows {limits.gpu_hours:g}; most of it: {', '.join(parts)}"
        )


@dataclass
class Guard:
    """Keeps a run from starting that would exceed its limits.

    A plan that only knows an upper bound of a dataset is decided on when that is prepared.
    """

    limits: Limits
    _decided: bool = False

    def check(
        self, config: RunConfig, root: Root, say: Callable[[str], None], *, prepared: bool = False
    ) -> None:
        """ConfigError if the run would exceed a limit, as far as that is known."""
        if self._decided or not self.limits:
            return
        found = plan(config, root)
        self._decided = prepared or not any(each.basis == "bound" for each in found.corpora)
        try:
            require_within(found, self.limits)
        except ConfigError as error:
            if self._decided:
                raise
            say(f"  {error}; decided when the texts are prepared")
