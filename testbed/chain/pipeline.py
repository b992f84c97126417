"""Connects the stages of an experiment: Alice's side, Bob's side and Eve's, from CSI to a verified key.

`KeyChain.agree` makes one common string out of two CSI series, `KeyChain.amplify` makes a key out of that string. Both
are dialogues (`core.ledger`): Alice and Bob each run their half, and `chain.dialogue` or a node exchanges the messages.

A trainable enhancer is trained before that, in a discussion of its own (`chain.training`).
"""

from __future__ import annotations

from collections.abc import Sequence

from testbed.chain.agreement import Agreed, Agreement, Side
from testbed.chain.amplification import Amplification
from testbed.chain.confirm import Transcript
from testbed.chain.defects import mend
from testbed.chain.dialogue import watched
from testbed.chain.eavesdropping import Eavesdropping, EveGuess, KeyGuess
from testbed.chain.training import training
from testbed.chain.wegman_carter import Pool
from testbed.core import registry
from testbed.core.antennas import canonical_antennas
from testbed.core.config import Accounting, ChainPlan
from testbed.core.errors import InputError
from testbed.core.forks import Children
from testbed.core.ledger import Dialogue, PublicMessage
from testbed.core.outcomes import HeardSeries, KeyReport, TrainReport
from testbed.core.seeds import generator
from testbed.core.stages import Enhancer, Quantizer, Reconciler
from testbed.core.types import CsiSeries, Features, Key
from testbed.entropy.facts import Facts


class KeyChain:
    """The stages of one experiment. Stateless between blocks, except for the enhancer's model where it has one: a seed
    and a block number determine every random choice.
    """

    def __init__(
        self,
        plan: ChainPlan,
        accounting: Accounting,
        blocks: int = 1,
        least_key_bits: int = 1,
        decided: set[int] | None = None,
        pool: Pool | None = None,
    ) -> None:
        """Build the stages. `blocks`: number of blocks that the run plans (ε is shared among them); `least_key_bits`:
        at this side, a shorter key counts as none, see `core.config.Floors`; `decided`: the blocks of this run on which
        an earlier chain spent its share of ε, to which this chain adds its own; `pool`: pads for the authentication of
        the discussion, where `wegman_carter` demands it.
        """
        self._pool = pool
        self._trained: Transcript | None = None
        """With a pool: the messages of the present model's training. The transcript of every later block begins with
        them, so that its tags cover the training, too."""
        self.accounting = accounting
        self.enhance: Enhancer = registry.make_stage("enhance", plan.enhance, plan.enhance_options)
        self.quantize: Quantizer = registry.make_stage("quantize", plan.quantize, plan.quantize_options)
        self.reconcile: Reconciler = registry.make_stage("reconcile", plan.reconcile, plan.reconcile_options)
        self._agreement = Agreement(self.enhance, self.quantize, self.reconcile, accounting, self._begin_transcript)
        self._amplification = Amplification(accounting, blocks, least_key_bits, decided, pool)
        self._eavesdropping = Eavesdropping(self._agreement)

    def train(self, role: Side, csi: CsiSeries, block: int, seed: int) -> Dialogue[TrainReport]:
        """Return one side's dialogue in which the enhancer is trained on a block that makes no key.

        Never raises DialogueFailed: a failure is sent to the peer and returned as `report.failure`
        (untrainable, protocol, or peer_failed: <the peer's reason>). An earlier model, if any, then stays.
        """
        csi, _ = mend(canonical_antennas(csi, role))
        dialogue = training(self.enhance, role, csi, block, generator(seed, "train", role, block))
        return dialogue if self._pool is None else self._remembered(dialogue, role, self._pool)

    def _remembered(self, dialogue: Dialogue[TrainReport], role: Side, pool: Pool) -> Dialogue[TrainReport]:
        said = Transcript(pool.polynomial())
        peer: Side = "bob" if role == "alice" else "alice"
        report = yield from watched(dialogue, lambda whose, m: said.add(role if whose == "own" else peer, m))
        if report.failure is None:
            self._trained = said
        return report

    def _begin_transcript(self) -> Transcript:
        if self._trained is not None:
            return self._trained.copy()
        return Transcript(None if self._pool is None else self._pool.polynomial())

    def agree(self, role: Side, csi: CsiSeries, block: int, seed: int) -> Dialogue[Agreed]:
        """See `Agreement.agree`."""
        return self._agreement.agree(role, csi, block, seed)

    def decide(self, agreed: Agreed, facts: Facts, seed: int, children: Children | None = None) -> KeyReport:
        """See `Amplification.decide`."""
        return self._amplification.decide(agreed, facts, seed, children)

    def amplify(
        self, role: Side, agreed: Agreed, decided: KeyReport | None, seed: int
    ) -> Dialogue[tuple[Key | None, KeyReport]]:
        """See `Amplification.amplify`."""
        return self._amplification.amplify(role, agreed, decided, seed)

    def features(self, csi: CsiSeries, role: Side) -> Features | None:
        """Return the enhancer's features of CSI; None where it needs a model and has none."""
        try:
            return self.enhance.transform(mend(canonical_antennas(csi, role))[0], role)
        except InputError:
            return None

    def overhear_training(
        self,
        from_alice: CsiSeries | None,
        from_bob: CsiSeries | None,
        transcript: Sequence[PublicMessage],
        seed: int,
        who: str = "eve",
    ) -> None:
        """See `Eavesdropping.learn`."""
        self._eavesdropping.learn(from_alice, from_bob, transcript, seed, who)

    def eavesdrop(
        self,
        block: int,
        from_alice: CsiSeries | None,
        from_bob: CsiSeries | None,
        transcript: Sequence[PublicMessage],
        complete: bool,
        who: str = "eve",
    ) -> EveGuess:
        """See `Eavesdropping.eavesdrop`."""
        return self._eavesdropping.eavesdrop(block, from_alice, from_bob, transcript, complete, who)

    def guess_key(self, guess: EveGuess, transcript: Sequence[PublicMessage]) -> KeyGuess | None:
        """See `Eavesdropping.guess_key`."""
        return self._eavesdropping.guess_key(guess, transcript)

    def report_series(
        self, from_alice: CsiSeries | None, from_bob: CsiSeries | None, who: str = "eve"
    ) -> tuple[HeardSeries, ...]:
        """See `Eavesdropping.report_series`."""
        return self._eavesdropping.report_series(from_alice, from_bob, who)
