"""Everything that decides how long a key may be, in Alice's process.

How a block is judged:

    facts = Facts.of_bits(bits, published, rounds, time_s, features,      # Alice's string and what it was made of
                          csi=…, heard=(Heard(…), …), patterns=…, states=…, earlier=(Earlier(…), …))
    judgement = judge(facts, epsilon_log2=64, blocks=5, seed=…)           # every Eve of the portfolio, out of fold
    key = key_length(facts, judgement, leaked_bits, Budget(64, 5), "estimated", AssumedEve(correlation=0.3))

    key.bits         ℓ, a multiple of 64, 0 where there is no key; key.failure says why
    key.terms        the ledger, term by term; key.eves the rows of "Who could know this key";
                     key.sensitivity, key.assumptions

- `Facts`, `Heard` (one antenna of one Eve and one link, over her whole recording), `Earlier` (an earlier block,
  training rounds, an earlier run): `facts`. Frozen; bad shapes, rounds or numbers are an InputError of one line.
- `Attack`, `load_attacks`, `portfolio`: `attack`. One file each in `attacks`, or the entry point `testbed.attacks`.
- `judge` → `Judgement` (`findings`, `failures`; a failure stops the key of the block): `judge`.
- `key_length`, `Budget`, `AssumedEve` → `KeyLength`: `length`.

Heard.values are the features that the chain's enhancer computes from Eve's CSI. Heard.csi and Facts.csi are a few
channels of complex CSI: attacks combine the antennas of an array with them and fit models of public patterns.
Facts.patterns are given where patterns are public: the key is then decided against an Eve who knows them. Where they
are secret, Facts.states alone is given.
"""
