"""What runs a model, as LayerRank sees it: token ids in, the state of every layer out.

`encode` makes pooled vectors and taps of it, `cost` what its layers cost, the same for every
backend. To add one: a class with the members of `Backend` and a function that loads it, in a file
beside `on_transformers.py`, and their `Entry` in `BACKENDS`; nothing else names a backend
(`tests/jobs/extract/test_backend.py` runs a small one). The config and the tokenizer of a model
are read without it, as transformers does (`subject.read_shape`, `tokenise.load_tokenizer`).

Shapes: N prompts, T tokens (right-padded), D features, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from layerrank.operators.later import Later
from layerrank.operators.model.subject import ModelShape, Subject

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from layerrank.operators.model import on_transformers
else:
    on_transformers = Later("layerrank.operators.model.on_transformers")


class Backend(Protocol):
    """A loaded model whose every layer can be read.

    Layer 0 is the input of the first block, layer k the raw output of block k as the next block
    gets it, L the last.
    """

    @property
    def shape(self) -> ModelShape:
        """The sizes: L blocks, D features, the most tokens that it reads, and its vocabulary."""

    @property
    def device(self) -> torch.device:
        """Where the states are; its vectors and metrics are computed there."""

    @property
    def has_final_norm(self) -> bool:
        """Whether `final_norm` changes anything; without it raw states stand for the norm too."""

    @property
    def final_size(self) -> int:
        """The features of a state that went through `final_norm`; most models keep D."""

    @property
    def pads(self) -> bool:
        """Whether texts of different lengths may share a batch: a state never tells by padding."""

    def forward(
        self, ids_NT: Tensor, mask_NT: Tensor, reached: Callable[[], None] | None = None
    ) -> Sequence[Tensor]:
        """Return the L+1 raw states [N, T, D] of token ids, on `device`, of any float type.

        Ids and mask [N, T] are int64 on the CPU. What stands in the padding of a state never
        matters. `reached` is called as the pass comes to each layer, 0 to L: there the time is
        read. A backend that cannot tell calls it L+1 times at the end, and every layer then takes
        as long as the model.
        """

    def final_norm(self, state_NTD: Tensor) -> Tensor:
        """Return what the model outputs if it is cut after the block that gave this state."""

    def layer_parameters(self) -> list[int]:
        """Return the parameters of the model cut after each layer 0..L, its final norm included."""

    def layer_operations(self, ids_NT: Tensor) -> list[int]:
        """Return the operations of a pass of these tokens through each of the same cut models.

        2 per multiply-add of every matrix product and convolution, all T x T products of attention
        among them; all 0 where they cannot be counted: blocks are then taken for equal.
        """


class Entry(NamedTuple):
    """A backend: which subjects it runs, what loads one onto a device, and its weight files.

    It tells its subjects by what they are, as by their name or the files in their folder; of one
    in object storage or on the hub only the name is known. `weights` is a glob of the files beside
    the config that hold them; where none has such a name, those of transformers are needed.
    """

    runs: Callable[[Subject], bool]
    load: Callable[[Subject, torch.device], Backend]
    weights: str = ""


def _load_model(subject: Subject, device: torch.device) -> Backend:
    return on_transformers.load_model(subject, device)


# The first that runs a subject is taken: others stand before transformers, which runs the rest.
BACKENDS = {"transformers": Entry(lambda _subject: True, _load_model)}


def backend_of(subject: Subject) -> Entry:
    """Return the backend that runs a subject."""
    return next(each for each in BACKENDS.values() if each.runs(subject))


def load_backend(subject: Subject, device: torch.device) -> Backend:
    """Load a subject onto `device`; ModelUnavailableError if that cannot be done."""
    return backend_of(subject).load(subject, device)
