"""How the entropies of the prompts are distributed, a small histogram for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jobs import wording_modes
from jobs.drawing import ACCENT, BAND, INK, MUTED, RULE, Size, drawing, new_axes, to_svg
from jobs.findings_modes import LayerModesFinding, ModesFinding
from jobs.wording import counted, number, share

_SIZE = Size(144, 92, left=2, right=2, top=4, bottom=20)


@dataclass(frozen=True)
class ModePlot:
    """One layer as the page shows it; no drawing where no prompt has a value."""

    layer: int
    label: str
    svg: Markup | None


def mode_plots(finding: ModesFinding, name: str) -> list[ModePlot]:
    """Return the histogram of every layer; ids in them begin with `name`."""
    unit = wording_modes.unit(finding)
    return [
        ModePlot(
            each.layer,
            wording_modes.label(each.bimodal, each.peaks),
            _draw(each, f"{name}-{each.layer}", unit) if each.counts else None,
        )
        for each in finding.layers
    ]


@drawing()
def _draw(layer: LayerModesFinding, name: str, unit: str) -> Markup:
    """Draw a histogram over its own range, of a bimodal layer in colour and with the split."""
    figure, axes = new_axes(_SIZE, [])
    fill, line = (BAND, ACCENT) if layer.bimodal else (RULE, MUTED)
    axes.stairs(layer.counts, layer.edges, fill=True, color=fill)
    axes.stairs(layer.counts, layer.edges, color=line, linewidth=1)
    if layer.bimodal and layer.split is not None:
        axes.axvline(layer.split, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.set_xlim(layer.edges[0], layer.edges[-1])
    axes.set_ylim(0, 1.05 * max(layer.counts))
    axes.set_yticks([])
    axes.set_xticks([])
    for place, side in ((0, "left"), (1, "right")):
        text = number(layer.edges[-place])
        axes.annotate(
            text,
            (place, 0),
            xycoords="axes fraction",
            xytext=(0, -5),
            textcoords="offset points",
            ha=side,
            va="top",
            color=MUTED,
            fontsize=11,
        )
    title = f"Entropies of the prompts in layer {layer.layer}"
    return to_svg(figure, name, title, _words(layer, unit))


def _words(layer: LayerModesFinding, unit: str) -> str:
    """Return a histogram in words."""
    low, high = layer.edges[0], layer.edges[-1]
    prompts = counted(layer.n_prompts, "prompt")
    most = _most(layer.counts, layer.edges)
    text = f"{prompts} from {low:.3g} to {high:.3g} {unit}, most of them {most}."
    if not layer.bimodal:
        return f"{text} Not two groups."
    label = wording_modes.label(layer.bimodal, layer.peaks)
    return (
        f"{text} {label[0].upper()}{label[1:]}; the two that stand out most lie around "
        f"{wording_modes.modes(layer)} and part at {number(layer.split)}; "
        f"{share(layer.share_high)} are in the upper one."
    )


def _most(counts: Sequence[int], edges: Sequence[float]) -> str:
    top = max(range(len(counts)), key=lambda index: counts[index])
    return f"from {edges[top]:.3g} to {edges[top + 1]:.3g}"
