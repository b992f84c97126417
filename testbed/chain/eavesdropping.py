"""Eavesdropping: the attack on a block by an Eve who runs the same chain and receives all public messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from testbed.chain.agreement import FOLLOW, LEAD, SACRIFICE, Agreement
from testbed.chain.amplification import AMPLIFY
from testbed.chain.amplify.toeplitz import seed_length, toeplitz_hash
from testbed.chain.defects import mend
from testbed.chain.dialogue import (
    UNREADABLE,
    integer,
    packed,
)
from testbed.chain.knowledge import heard_series
from testbed.chain.training import EveModels
from testbed.core.errors import DialogueFailed
from testbed.core.ledger import PublicMessage
from testbed.core.outcomes import COVERAGE, EveReport, HeardSeries
from testbed.core.seeds import generator
from testbed.core.types import U8, Bits, CsiSeries, Features


@dataclass(slots=True)
class EveGuess:
    """Outcome of Eve's attack on one block."""

    report: EveReport
    raw: U8 = field(repr=False)
    """(bit,) her best guess of the raw bits, sacrificed ones included; empty where she missed the quantizer's
    messages."""
    kept: U8 | None = field(repr=False)
    """(bit,) the same without the sacrificed bits; None where their positions are not known."""


@dataclass(slots=True)
class KeyGuess:
    """What Eve makes of her guess once the public discussion is over."""

    reconciled: U8 = field(repr=False)
    """(bit,) guess of the kept bits, improved by the public discussion."""
    key: U8 | None = field(repr=False)
    """(bit,) guess of the key; None where no key was announced."""


class Eavesdropping:
    """Eve's attack by the stages of one experiment; she may have several antennas and links, and a model of her own."""

    def __init__(self, agreement: Agreement) -> None:
        self._agreement = agreement
        self.enhance, self.quantize, self.reconcile = agreement.enhance, agreement.quantize, agreement.reconcile
        self._eves: dict[str, EveModels] = {}
        """Eves who trained a model of their own; a node is one Eve, a replay may have several."""

    def learn(
        self,
        from_alice: CsiSeries | None,
        from_bob: CsiSeries | None,
        transcript: Sequence[PublicMessage],
        seed: int,
        who: str = "eve",
    ) -> None:
        """Let Eve take the public part of the model, and learn her own model from Bob's published CSI and her CSI."""
        models = self._eves[who] = EveModels()
        from_alice, from_bob = (None if csi is None else _mended(csi) for csi in (from_alice, from_bob))
        models.learn(self.enhance, from_alice, from_bob, transcript, generator(seed, "train", who))

    def eavesdrop(
        self,
        block: int,
        from_alice: CsiSeries | None,
        from_bob: CsiSeries | None,
        transcript: Sequence[PublicMessage],
        complete: bool,
        who: str = "eve",
    ) -> EveGuess:
        """Run Eve's attack on a block: the same chain on her measurements, by the messages of quantizer and sacrifice.

        She tries Alice's transmissions, Bob's, and the mean of both in the feature domain, each also through a model of
        her own where the enhancer was trained, and keeps the one with the fewest errors on the sacrificed bits. A link
        of which she received little is used only if there is no other. Her error rate is therefore the least of three
        or six, which makes her look slightly better than she is. Any part may be missing (a series is None, messages
        were lost); the result is then poorer.
        """
        heard = {m.kind: m for m in transcript}
        links = self._links(from_alice, from_bob, self._eves.get(who, EveModels()))
        empty = np.zeros(0, np.uint8)
        if LEAD not in heard or FOLLOW not in heard:
            return EveGuess(_eve_report(block, 0, 0, 0, "none", complete), empty, None)
        guesses: dict[str, Bits] = {}
        covered: dict[str, NDArray[np.bool_]] = {}
        for link, features in links.items():
            try:
                guesses[link], covered[link] = self.quantize.eavesdrop(features, heard[LEAD], heard[FOLLOW])
            except UNREADABLE:
                continue  # her series has other rounds or antennas than this block
        if not guesses:
            return EveGuess(_eve_report(block, 0, 0, 0, "none", complete), empty, None)
        link, first = next(iter(guesses.items()))
        try:
            positions, published = self._agreement.read_sacrifice(heard[SACRIFICE], first, heard[LEAD])
        except (DialogueFailed, KeyError):
            return EveGuess(_eve_report(block, 0, 0, 0, link, complete), first.values, None)
        scores = {}
        for link, guess in guesses.items():
            known = covered[link][positions]
            errors = int(np.count_nonzero((guess.values[positions] != published) & known))
            scores[link] = _eve_report(block, positions.size, int(known.sum()), errors, link, complete)
        link = min(scores, key=lambda name: _weakness(scores[name]))
        raw = guesses[link].values
        return EveGuess(scores[link], raw, np.delete(raw, positions))

    def guess_key(self, guess: EveGuess, transcript: Sequence[PublicMessage]) -> KeyGuess | None:
        """Improve her guess by what reconciliation published, and hash it as was announced.

        Returns None where she does not know which bits were kept.
        """
        if guess.kept is None:
            return None
        reconciled = self.reconcile.eavesdrop(guess.kept, transcript)
        announced = next((message for message in reversed(transcript) if message.kind == AMPLIFY), None)
        return KeyGuess(reconciled, _eve_key(reconciled, announced))

    def report_series(
        self, from_alice: CsiSeries | None, from_bob: CsiSeries | None, who: str = "eve"
    ) -> tuple[HeardSeries, ...]:
        """Return her report to Alice on the rounds of these series: for each antenna and link, her features, also those
        by a model of her own."""
        models = self._eves.get(who, EveModels())
        out = []
        for antenna, heard in _antennas(from_alice, from_bob):
            for how, features in models.features(self.enhance, heard).items():
                node = f"{who}{how.replace(', ', '+')}.{antenna}"
                out += [heard_series(f"{node}:{link}", f, heard[link]) for link, f in features.items()]
        return tuple(out)

    def _links(self, from_alice: CsiSeries | None, from_bob: CsiSeries | None, eve: EveModels) -> dict[str, Features]:
        links: dict[str, Features] = {}
        for antenna, heard in _antennas(from_alice, from_bob):
            which = f" at antenna {antenna}" if antenna else ""
            for how, features in eve.features(self.enhance, heard).items():
                links |= {f"{name}{how}{which}": f for name, f in features.items()}
                links |= _both(features, f"both{how}{which}")
        return links


def _antennas(from_alice: CsiSeries | None, from_bob: CsiSeries | None) -> Iterator[tuple[int, dict[str, CsiSeries]]]:
    """Yield each of her antennas with its series of the links: each antenna is one receiver of the chain."""
    series = {name: csi for name, csi in (("alice", from_alice), ("bob", from_bob)) if csi is not None}
    for antenna in range(max((csi.h.shape[1] for csi in series.values()), default=0)):
        yield (
            antenna,
            {
                name: _mended(replace(csi, h=csi.h[:, antenna : antenna + 1]))
                for name, csi in series.items()
                if antenna < csi.h.shape[1]
            },
        )


def _mended(csi: CsiSeries) -> CsiSeries:
    """Return her CSI with all gaps filled and all frames kept, because a guessed value is better for her than none."""
    return replace(mend(csi, drop_frames=False)[0], guessed=None)


def _both(links: dict[str, Features], name: str) -> dict[str, Features]:
    """Return the mean of two links' features, where both are of the same rounds and dimensions."""
    if len(links) == 2:
        a, b = links["alice"], links["bob"]
        if a.values.shape == b.values.shape and np.array_equal(a.rounds, b.rounds):
            # where one of the two is missing, the other is used alone
            both = np.where(
                np.isnan(a.values), b.values, np.where(np.isnan(b.values), a.values, (a.values + b.values) / 2)
            )
            return {name: replace(a, values=both)}
    return {}


def _weakness(eve: EveReport) -> tuple[bool, float]:
    """Order links by how little they help Eve; where she received nothing she guesses half of the bits."""
    deaf = eve.sacrificed_bits - eve.covered_bits
    return eve.covered_bits < COVERAGE * eve.sacrificed_bits, eve.sacrificed_errors + deaf / 2


def _eve_report(block: int, sacrificed: int, covered: int, errors: int, link: str, complete: bool) -> EveReport:
    return EveReport(
        block=block,
        sacrificed_bits=sacrificed,
        covered_bits=covered,
        sacrificed_errors=errors,
        best_link=link,
        transcript_complete=complete,
    )


def _eve_key(reconciled: U8, message: PublicMessage | None) -> U8 | None:
    if message is None:
        return None
    try:
        length = integer(message, "length", 1, reconciled.size)
        refill = integer(message, "refill", 0, length) if "refill" in message.body else 0
        hashed = toeplitz_hash(reconciled, packed(message, "seed", seed_length(reconciled.size, length)), length)
        return hashed[refill:]
    except DialogueFailed:
        return None
