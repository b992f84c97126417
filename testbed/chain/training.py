"""The training of an enhancer as a public discussion, and what Eve can learn from it.

Bob publishes his CSI of the training rounds. Alice trains a model that maps her CSI to his, publishes the part that Bob
needs, and uses the model as soon as Bob has confirmed it. All of this is public: the rounds make no key, and Eve trains
a model of her own that maps her measurements to Bob's published CSI.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from testbed.chain.dialogue import FAILED, PEER_FAILED, UNREADABLE, check_rounds, failed_message, metered, rounds_digest
from testbed.core.errors import DialogueFailed, InputError
from testbed.core.ledger import Dialogue, Ledger, PublicMessage, Receive, Send
from testbed.core.outcomes import TrainReport
from testbed.core.stages import Enhancer, TrainableEnhancer
from testbed.core.types import CsiSeries, Features

T = TypeVar("T")
Steps = Generator[Send | Receive, PublicMessage | None, T]

CSI, MODEL, TRAINED = "training_csi", "training_model", "training_done"
MAX_MODEL_BYTES = 1 << 24
"""Largest number of bytes of a model: more than any enhancer publishes, and few enough for a node's memory."""


def training(
    enhancer: Enhancer, role: str, csi: CsiSeries, block: int, rng: np.random.Generator
) -> Dialogue[TrainReport]:
    """Return one side's dialogue; CSI in canonical antenna order. See `KeyChain.train`."""
    ledger = Ledger()
    scores: dict[str, Any] = {}

    def side() -> Steps[TrainReport]:
        failure, model = None, None
        card: dict[str, Any] = {}
        try:
            if not isinstance(enhancer, TrainableEnhancer):
                raise DialogueFailed("untrainable", "this enhancer is not trained")
            steps = _alice(enhancer, csi, block, rng, scores) if role == "alice" else _bob(enhancer, csi, block)
            yield from metered(steps, ledger)
            model = enhancer.model_id
            if role == "alice":
                card = {k: v for k, v in enhancer.card.items() if k != "subcarrier_hz"}  # the run's record has them
        except DialogueFailed as exc:
            failure = f"{PEER_FAILED}: {exc.detail}" if exc.reason == PEER_FAILED else exc.reason
            if exc.detail and exc.reason != PEER_FAILED:
                failure += f" ({exc.detail})"
            if exc.reason != PEER_FAILED:
                yield Send(failed_message(exc))
        return TrainReport(
            block=block, probes=csi.h.shape[0], model=model, public_bytes=ledger.sent_bytes, messages=ledger.messages,
            failure=failure, card=card, **scores,
        )  # fmt: skip

    return side()


def _alice(
    enhancer: TrainableEnhancer, csi: CsiSeries, block: int, rng: np.random.Generator, scores: dict[str, Any]
) -> Steps[None]:
    message = yield Receive(CSI)
    assert message is not None
    bob = read_series(message, csi, block)
    learner = enhancer.fresh()  # the earlier model stays until Bob has the new one, too
    try:
        learner.fit(csi, bob, rng)
    except (ValueError, InputError) as exc:
        raise DialogueFailed("untrainable", str(exc)) from exc
    yield Send(PublicMessage(kind=MODEL, body={"block": block, "model": learner.publication()}))
    yield Receive(TRAINED)
    enhancer.load(learner.dump())
    scores.update(learner.scores, memory_rounds=memory_rounds(csi))


def memory_rounds(csi: CsiSeries, forgotten: float = 0.1) -> int | None:
    """Return the first lag in probes at which the levels' mean autocorrelation is `forgotten` or less.

    None where there is no such lag within half of the probes: the series is then too short to show how long the
    channel's memory is.
    """
    levels = np.abs(csi.h).reshape(csi.h.shape[0], -1).astype(np.float64)
    levels = levels[np.isfinite(levels).all(axis=1)]
    n = len(levels)
    levels -= levels.mean(axis=0) if n else 0.0
    power = float((levels**2).sum())
    for lag in range(1, n // 2 if power else 1):
        if float((levels[lag:] * levels[:-lag]).sum()) <= forgotten * power * (n - lag) / n:
            return lag
    return None


def _bob(enhancer: TrainableEnhancer, csi: CsiSeries, block: int) -> Steps[None]:
    # The CSI is published in full and counts 0 leaked bits: no string is made from these rounds.
    yield Send(PublicMessage(kind=CSI, body=series_body(csi, block)))
    message = yield Receive(MODEL)
    assert message is not None
    learner = enhancer.fresh()
    try:
        if message.body.get("block") != block:
            raise ValueError(f"it is about block {str(message.body.get('block'))[:20]}, not of {block}")
        learner.adopt(message.body["model"])
        learner.transform(csi, "bob")  # raises here if the model cannot be used, so that it is not confirmed
    except (*UNREADABLE, InputError) as exc:
        raise DialogueFailed("protocol", f"{MODEL}: {type(exc).__name__}: {exc}") from exc
    enhancer.load(learner.dump())
    yield Send(PublicMessage(kind=TRAINED, body={"block": block, "model": learner.model_id}))


# ---------------------------------------------------------------- published CSI


def series_body(csi: CsiSeries, block: int) -> dict[str, Any]:
    """Return the published form of a series; complex64 in C order."""
    data = np.ascontiguousarray(csi.h, np.complex64).tobytes()
    return {
        "block": block, "rounds": rounds_digest(csi), "shape": list(csi.h.shape), "csi": data,
        "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip


def read_series(message: PublicMessage, own: CsiSeries, block: int | None) -> CsiSeries:
    """Return Bob's published series, of the rounds of `own`; raises DialogueFailed (protocol, other_rounds)."""
    body = message.body
    shape, data = body.get("shape"), body.get("csi")
    if block is not None and body.get("block") != block:
        raise DialogueFailed("protocol", f"{message.kind} is about another block than {block}")
    check_rounds(message, own)
    if not isinstance(shape, list) or shape[:1] != [own.h.shape[0]] or shape[-1:] != [own.h.shape[-1]]:
        raise DialogueFailed(
            "protocol", f"{message.kind}: CSI of shape {str(shape)[:60]}, this side has {list(own.h.shape)}"
        )
    whole = len(shape) == 4 and all(isinstance(n, int) and 0 < n < 1 << 31 for n in shape)
    if not whole or not isinstance(data, bytes) or len(data) != 8 * math.prod(shape):
        raise DialogueFailed("protocol", f"{message.kind}: not the CSI of shape {str(shape)[:60]}")
    if hashlib.sha256(data).hexdigest() != body.get("sha256"):
        raise DialogueFailed("protocol", f"{message.kind}: the CSI is not what was sent (SHA-256 differs)")
    h = np.frombuffer(data, np.complex64).reshape(shape)
    if np.isinf(h.real).any() or np.isinf(h.imag).any():
        raise DialogueFailed("protocol", f"{message.kind}: infinite CSI")
    return CsiSeries(h, own.rounds, own.subcarrier_hz)


# ---------------------------------------------------------------- its use in a key block


def trained_features(enhancer: Enhancer, csi: CsiSeries, role: str) -> tuple[Features, dict[str, Any]]:
    """Return a side's features, and the entries about the model for its message; raises DialogueFailed.

    not_trained: there is no model here, e.g. after a restart; wrong_model: it was made for other CSI.
    """
    about = {}
    if isinstance(enhancer, TrainableEnhancer):
        if enhancer.model_id is None:
            raise DialogueFailed("not_trained", f"{role} has no model: it was not trained, or it was lost")
        about = {"model": enhancer.model_id}
    try:
        return enhancer.transform(csi, role), about
    except InputError as exc:
        raise DialogueFailed("wrong_model", str(exc)) from exc


def read_model_id(enhancer: Enhancer, lead: PublicMessage) -> None:
    """Raise DialogueFailed unless Alice uses the same model as this side."""
    if isinstance(enhancer, TrainableEnhancer) and enhancer.model_id is not None:
        theirs = lead.body.get("model")
        if theirs != enhancer.model_id:
            raise DialogueFailed("wrong_model", f"Alice has model {str(theirs)[:20]}, Bob {enhancer.model_id}")


# ---------------------------------------------------------------- Eve


@dataclass(slots=True)
class EveModels:
    """Eve's models of a trained enhancer: Bob's side, which is public, and one of her own for each link."""

    _public: TrainableEnhancer | None = None
    _own: dict[str, TrainableEnhancer] = field(default_factory=dict)

    def learn(
        self,
        enhancer: Enhancer,
        from_alice: CsiSeries | None,
        from_bob: CsiSeries | None,
        transcript: Sequence[PublicMessage],
        rng: np.random.Generator,
    ) -> None:
        """Learn from the overheard training; nothing where she missed the messages or the rounds."""
        heard = {m.kind: m for m in transcript}
        if not isinstance(enhancer, TrainableEnhancer) or FAILED in heard or not {CSI, MODEL} <= heard.keys():
            return
        public = enhancer.fresh()
        try:
            public.adopt(heard[MODEL].body["model"])
        except (*UNREADABLE, InputError):
            return
        self._public = public
        for link, own in (("alice", from_alice), ("bob", from_bob)):
            if own is None:
                continue
            learner = enhancer.fresh()
            try:
                learner.fit(own, read_series(heard[CSI], own, None), rng)
            except (*UNREADABLE, DialogueFailed, InputError):
                continue  # her CSI does not fit, or there is too little of it
            self._own[link] = learner

    def features(self, enhancer: Enhancer, heard: Mapping[str, CsiSeries]) -> dict[str, dict[str, Features]]:
        """Return her features by method ('': as Bob's are computed; ', trained': by her own models) and by link."""
        out: dict[str, dict[str, Features]] = {"": {}}
        for link, csi in heard.items():
            try:
                out[""][link] = (self._public or enhancer).transform(csi, "eve")
            except (InputError, ValueError):
                continue  # she has no model for these antennas
        own = {}
        for link, csi in heard.items():
            if link in self._own:
                own[link] = self._own[link].transform(csi, "alice")
        if own:
            out[", trained"] = own
        return out
