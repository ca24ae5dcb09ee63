"""What mteb is given in place of a model: an encoder that looks vectors up by text.

Shapes: N texts, D dimensions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from operators.benchmark.tasks import mteb_library

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta

Vectors = npt.NDArray[np.float32]

# Vectors [N, D] of N texts in their order; KeyError with the text where there is none.
Lookup = Callable[[Sequence[str]], Vectors]

# A model that is named without an organisation is filed under this one.
_ORGANISATION = "layerrank"
_SHOWN_CHARACTERS = 60


class Recorder:
    """A lookup that has a vector for every text, and keeps the texts in first-seen order.

    The vectors are 8 pseudo-random numbers in -1/2..1/2 that depend on the text alone: small, so
    that evaluators finish quickly, and different, so that none of them finds nothing to fit.
    """

    def __init__(self) -> None:
        self.texts: dict[str, None] = {}

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Note `texts` and return their vectors [N, 8]."""
        self.texts.update(dict.fromkeys(texts))
        digests = b"".join(
            blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            for text in texts
        )
        numbers = np.frombuffer(digests, dtype="<u2").reshape(len(texts), 8)
        return (numbers / np.float32(2**16 - 1) - np.float32(0.5)).astype(np.float32)


@dataclass(frozen=True)
class LookupEncoder:
    """An encoder in the sense of mteb's `EncoderProtocol`, whose vectors are looked up.

    Texts are looked up as mteb hands them to a model: as they are, and a document as its title and
    text in one (`(title + " " + text).strip()`). Similarity is the cosine, as for mteb's encoders
    that name it.
    """

    task_name: str
    lookup: Lookup
    mteb_model_meta: ModelMeta

    # The inputs are a torch DataLoader; everything else mteb passes describes prompts.
    def encode(self, inputs: Any, **_prompt: object) -> Vectors:  # noqa: ANN401
        """Return the vectors [N, D] of the loader's texts, in their order."""
        texts = list(inputs.dataset["text"])
        try:
            vectors_ND = self.lookup(texts)
        except KeyError as error:
            text = str(error.args[0] if error.args else "")
            raise ValueError(
                f"mteb task {self.task_name}: no stored vector for {text[:_SHOWN_CHARACTERS]!r} "
                f"({len(text)} characters); extract the texts that recorded_texts returns for it"
            ) from error
        if vectors_ND.ndim != 2 or len(vectors_ND) != len(texts):  # noqa: PLR2004 - a matrix
            raise ValueError(
                f"mteb task {self.task_name}: {len(texts)} texts need one vector each, "
                f"the lookup returned {vectors_ND.shape}"
            )
        # Half precision changes scores, and evaluators fail on types that numpy does not know.
        return np.ascontiguousarray(vectors_ND, dtype=np.float32)

    def similarity(self, first_ND: npt.ArrayLike, second_ND: npt.ArrayLike) -> object:
        """Return the cosine of every pair of a first and a second vector."""
        return importlib.import_module("mteb.similarity_functions").cos_sim(first_ND, second_ND)

    def similarity_pairwise(self, first_ND: npt.ArrayLike, second_ND: npt.ArrayLike) -> object:
        """Return the cosine of every first vector with the second one of the same row."""
        library = importlib.import_module("mteb.similarity_functions")
        return library.pairwise_cos_sim(first_ND, second_ND)


def model_meta(model_name: str, revision: str) -> ModelMeta:
    """Return mteb's description of a model of which only name and revision are known.

    mteb requires an organisation in the name; a name without "/" gets `layerrank/` before it.
    """
    mteb_library()
    described = importlib.import_module("mteb.models.model_meta")
    meta: ModelMeta = described.ModelMeta.create_empty(
        overwrites={
            "name": model_name if "/" in model_name else f"{_ORGANISATION}/{model_name}",
            "revision": revision,
            "similarity_fn_name": described.ScoringFunction.COSINE,
        }
    )
    return meta
