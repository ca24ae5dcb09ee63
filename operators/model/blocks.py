"""Where the layers of a model of transformers are, found by running a short text through it.

Shapes: N prompts, T tokens, D features, L blocks.

Nothing is taken on trust, for architectures differ: another list may have as many modules as there
are blocks, something may stand between two blocks or behind the last one. So the blocks are the
list that runs once each, in order, on a text; a layer is what leaves a block and enters the next
one; and where the two differ, or the model's own `hidden_states` say otherwise, the model that is
cut there for a moment decides. What cannot be settled so is refused.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.utils.generic import ModelOutput

from layerrank.operators.model.subject import ModelUnavailableError

# What the code of an architecture raises when it is run as it was not meant to be.
FOREIGN = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError),
    *(RuntimeError, TypeError, ValueError),
)
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
_ORDINARY = 1000  # token ids below it are of any tokenizer's text
_NO_CHANGE = (nn.Dropout, nn.Identity)  # of a model that is not trained


class Stack(NamedTuple):
    """A list of modules that may be the blocks; the names of its weights begin with `name`."""

    name: str
    parent: nn.Module
    blocks: nn.ModuleList


class Reading(NamedTuple):
    """How the layers 0..L are read, and what makes the model's output of the last one.

    Layer k is what enters block k + 1 where `entering[k]`, else what leaves block k. The modules of
    `tail`, one after the other, make the output.
    """

    stack: Stack
    entering: list[bool]
    tail: list[nn.Module]


class _Trace(NamedTuple):
    """One pass: what entered and left the blocks, in order, and what ran after the last of them."""

    ids_NT: Tensor
    indices: list[int]
    entered: list[Tensor]
    left: list[Tensor]
    copies: list[Tensor]  # of what entered the first block and left each, as it was then
    after: list[nn.Module]
    last_NTD: Tensor
    own: Sequence[Tensor]  # the model's hidden_states; none if it has none


def call(module: nn.Module, ids_NT: Tensor, mask_NT: Tensor, **asked: bool) -> Any:  # noqa: ANN401
    """Run a model on token ids, without what its signature does not know; return its output."""
    known = inspect.signature(module.forward).parameters
    anything = any(each.kind is each.VAR_KEYWORD for each in known.values())
    device = next(module.parameters()).device
    given: dict[str, Any] = {"attention_mask": mask_NT.to(device), **asked}
    # Decoders would otherwise build a key-value cache that nobody reads.
    given |= {"use_cache": False} if hasattr(module.config, "use_cache") else {}
    given = {name: value for name, value in given.items() if anything or name in known}
    with torch.inference_mode():
        return module(input_ids=ids_NT.to(device), **given)


def probe_ids(config: Any, lengths: Sequence[int]) -> list[Tensor]:  # noqa: ANN401
    """Return texts of so many ordinary tokens, one after another, as far as there are enough."""
    text = config.get_text_config()
    special = set[Any]()
    for name, value in [*vars(config).items(), *vars(text).items()]:
        if name.endswith(("token_id", "token_index")):
            special |= {*value} if isinstance(value, (list, tuple)) else {value}
    known = range(1, min(getattr(text, "vocab_size", None) or _ORDINARY, _ORDINARY))
    ordinary = [each for each in known if each not in special] or [0]
    ids = torch.tensor(ordinary * sum(lengths))[: sum(lengths)]
    return [*torch.split(ids, [*lengths])]


def state_of(output: Any) -> Any:  # noqa: ANN401  (whatever a block gives)
    """Return the state in what a block gives: itself, or the first of several things."""
    while isinstance(output, (tuple, list, ModelOutput)) and len(output):
        output = output[0]
    return output


def entering_state(args: Sequence[Any], given: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return the state in what a block is given."""
    if args:
        return args[0]
    if "hidden_states" in given:
        return given["hidden_states"]
    return next((each for each in given.values() if isinstance(each, Tensor)), None)


def find_layers(module: nn.Module, layers: int, ids_NT: Tensor) -> Reading:
    """Return how to read the layers of a model of `layers` blocks, by a text [1, T].

    ModelUnavailableError that says what is in the way.
    """
    name = type(module).__name__
    stacks = [
        Stack(f"{place}.{child}".removeprefix("."), parent, blocks)
        for place, parent in module.named_modules()
        for child, blocks in parent.named_children()
        if isinstance(blocks, nn.ModuleList) and len(blocks) == layers
    ]
    if not stacks:
        raise ModelUnavailableError(f"{name} has no list of {layers} blocks that can be read")
    reasons = defaultdict[str, list[str]](list)
    for stack in stacks:
        trace = _trace(module, stack, ids_NT)
        found = _unlike_blocks(trace, layers, ids_NT.shape[1]) or _settled(module, stack, trace)
        if isinstance(found, Reading):
            return found
        reasons[found].append(stack.name)
    told = "; ".join(f"{', '.join(places)}: {reason}" for reason, places in reasons.items())
    raise ModelUnavailableError(f"the layers of {name} cannot be read: {told}")


def _trace(module: nn.Module, stack: Stack, ids_NT: Tensor) -> _Trace:
    indices, entered, left, copies = list[int](), list[Any](), list[Any](), list[Any]()

    def keep(states: list[Any], state: Any) -> None:  # noqa: ANN401
        states.append(state)
        if isinstance(state, Tensor) and (states is left or len(states) == 1):
            copies.append(state.clone())

    def enter(index: int, args: Any, given: Any) -> None:  # noqa: ANN401
        indices.append(index)
        keep(entered, entering_state(args, given))

    after, hooks = _watched_rest(module, stack, left)
    for index, block in enumerate(stack.blocks):
        hooks += [
            block.register_forward_pre_hook(
                lambda _block, args, given, index=index: enter(index, args, given), with_kwargs=True
            ),
            block.register_forward_hook(lambda _block, _args, output: keep(left, state_of(output))),
        ]
    try:
        output = _output(module, ids_NT, output_hidden_states=True)
    finally:
        for hook in hooks:
            hook.remove()
    own = getattr(output, "hidden_states", None) or ()
    return _Trace(ids_NT, indices, entered, left, copies, after, output.last_hidden_state, own)


def _watched_rest(
    module: nn.Module, stack: Stack, left: Sequence[Any]
) -> tuple[list[nn.Module], list[RemovableHandle]]:
    """Return a list that gets what runs, not inside another, once all blocks are `left`; hooks."""
    after, running = list[nn.Module](), list[nn.Module]()

    def begin(each: nn.Module, _args: Any) -> None:  # noqa: ANN401
        if len(left) >= len(stack.blocks):
            if not running:
                after.append(each)
            running.append(each)

    def end(each: nn.Module, _args: Any, _output: Any) -> None:  # noqa: ANN401
        if running and running[-1] is each:
            running.pop()

    inside, hooks = {*stack.blocks.modules()}, list[RemovableHandle]()
    for each in module.modules():
        if each not in inside and not isinstance(each, _NO_CHANGE):
            hooks += [each.register_forward_pre_hook(begin), each.register_forward_hook(end)]
    return after, hooks


def _output(module: nn.Module, ids_NT: Tensor, **asked: bool) -> Any:  # noqa: ANN401
    """Return what a model makes of a text; ModelUnavailableError if it makes no states of it."""
    name = type(module).__name__
    try:
        output = call(module, ids_NT, torch.ones_like(ids_NT), **asked)
    except torch.OutOfMemoryError:
        raise
    except FOREIGN as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelUnavailableError(f"{name} cannot be run on text alone ({cause})") from error
    if not isinstance(getattr(output, "last_hidden_state", None), Tensor):
        raise ModelUnavailableError(f"{name} gives no last hidden state of a text alone")
    return output


def _unlike_blocks(trace: _Trace, layers: int, tokens: int) -> str:
    """Return why what a list of modules does is not what blocks do; "" if it is."""
    if not trace.indices:
        return "they do not run, or in a way that no hook sees"
    if trace.indices != [*range(layers)] or len(trace.left) != layers:
        return "they do not run once each, in order"
    width = trace.left[-1].shape[-1] if isinstance(trace.left[-1], Tensor) else 0
    for index, state in enumerate([trace.entered[0], *trace.left]):
        shape = [*state.shape] if isinstance(state, Tensor) else None
        if not shape or shape[::2] != [1, width] or len(shape) != 3 or shape[1] < tokens:  # noqa: PLR2004
            found = shape or type(state).__name__
            return (
                f"layer {index} of a text of {tokens} tokens is {found}, not [1, {tokens}, {width}]"
            )
    return ""


def _settled(module: nn.Module, stack: Stack, trace: _Trace) -> Reading | str:
    """Return how layers are read, each confirmed, or why the first that is not cannot be."""
    tokens, layers = trace.ids_NT.shape[1], len(stack.blocks)

    def same(found: Any, wanted: Any, tolerance: float | None = None) -> bool:  # noqa: ANN401
        if not (isinstance(found, Tensor) and isinstance(wanted, Tensor)):
            return False
        found_NTD, wanted_NTD = found[:, :tokens], wanted[:, :tokens]
        if tolerance is None:  # some models of 16 bits add their blocks up in 32
            is_exact = found.dtype == wanted.dtype == torch.float32
            tolerance = _TOLERANCE[torch.float32 if is_exact else torch.bfloat16]
        return found_NTD.shape == wanted_NTD.shape and torch.allclose(
            found_NTD.float(), wanted_NTD.float(), rtol=tolerance, atol=tolerance, equal_nan=True
        )

    # A pooler may run last, which makes something else of the output.
    tails = (trace.after[:count] for count in range(len(trace.after), -1, -1))
    tail = next(
        (each for each in tails if same(_through(each, trace.left[-1]), trace.last_NTD)), None
    )
    if tail is None:
        return "the model's output is made of more than what leaves the last of them"
    states = [trace.entered[0], *trace.left]
    if not all(map(partial(same, tolerance=0), states, trace.copies)):
        return "their states are written over by what comes after"
    entering = [True] + [False] * layers
    for layer, state in enumerate(states):
        # Not by index: the embeddings may be absent, and the last is often behind the final norm.
        own = trace.own[max(layer - 1, 0) : layer + 2] if len(trace.own) == layers + 1 else [state]
        looks = [state, _through(tail, state)] if layer == layers else [state]
        agreed = any(same(found, wanted) for found in looks for wanted in own)
        chained = layer in (0, layers) or same(trace.entered[layer], state, tolerance=0)
        if agreed and chained:
            continue
        output = _cut_output(module, stack, layer, trace.ids_NT)
        either = [(False, state)] if chained else [(True, trace.entered[layer]), (False, state)]
        fits = [before for before, each in either if same(_through(tail, each), output)]
        if not fits:
            return f"what leaves the block of layer {layer} is not what the model goes on with"
        entering[layer] = fits[0] or layer == 0
    return Reading(stack, entering, tail)


def _through(modules: Sequence[nn.Module], state: Any) -> Any:  # noqa: ANN401
    """Return a state after some modules; None if they cannot take it one after the other."""
    try:
        return through(modules, state)
    except FOREIGN:
        return None


def through(modules: Sequence[nn.Module], state: Tensor) -> Tensor:
    """Return a state after some modules, one after the other."""
    with torch.inference_mode():
        for each in modules:
            state = each(state)
    return state


def _cut_output(module: nn.Module, stack: Stack, layer: int, ids_NT: Tensor) -> Tensor | None:
    """Return what the model outputs with its first `layer` blocks alone; None if it cannot run."""
    modules, name = stack.parent._modules, stack.name.rpartition(".")[2]
    modules[name] = stack.blocks[:layer]
    try:
        output: Tensor = _output(module, ids_NT).last_hidden_state
    except ModelUnavailableError:
        return None
    finally:
        modules[name] = stack.blocks
    return output
