"""What the enhancers with a model share: vectors of CSI, splits, the model with its card, files, messages.

A subclass learns from pairs of real vectors (probe, element): Re of all antenna pairs and subcarriers, then Im, of CSI
without each frame's delay and common phase (`_features.aligned`). The enhancer then either predicts Bob's CSI at Alice
(`maps_csi`), from which both ends compute features as `identity` does; or it computes features of its own, at both
ends. For CSI without phases (RSSI) the vectors are the levels in dB, one element a subcarrier, and one subcarrier
suffices.

Training rounds are split in the order of time and not shuffled, because neighbouring probes are nearly the same: the
last part validates the model, and a gap before it is not used. The rounds that make keys come after all of them
(`[training] guard_rounds`).
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from testbed import __version__
from testbed.chain.enhance._features import C128, Count, Reduction, ScaleName, levels_only, of_levels
from testbed.core.archives import read_npz
from testbed.core.errors import InputError
from testbed.core.gate import check_plain
from testbed.core.options import StageOptions
from testbed.core.stages import TrainableEnhancer
from testbed.core.types import F64, I64, CsiSeries, Features
from testbed.core.whole import read_whole, write_whole

MIN_SUBCARRIERS = 4
MAX_MODEL_BYTES = 1 << 26
"""Largest number of bytes of a model's arrays: ten times that of the largest model of this package."""
MIN_PROBES = 16
"""Fewest complete pairs of probes that make a training set."""
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers of a training series."""

    train: I64
    validate: I64

    @classmethod
    def of(cls, n: int, validation: float, gap: int) -> Split:
        """Return the first rows for training and the last `validation` share for validation, with `gap` unused rows
        between them.

        Raises ValueError where fewer than 2 rows are left to train.
        """
        first = n - max(2, round(validation * n))
        if first - gap < 2:
            raise ValueError(
                f"gap = {gap} leaves nothing of {n} probes to train, of which {n - first} validate; "
                f"accepted: up to {first - 2}"
            )
        return cls(np.arange(first - gap), np.arange(first, n))


@dataclass(frozen=True, slots=True)
class Learned:
    """The result of a subclass's training."""

    private: Arrays = field(default_factory=dict)
    """Arrays that only Alice needs."""
    public: Arrays = field(default_factory=dict)
    """Arrays that both ends need; they are published."""
    history: dict[str, Any] = field(default_factory=dict)
    """The course of the training, plain values for the card."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model with its card, which states what the model is and from which data it was trained by which software."""

    card: dict[str, Any]
    private: Arrays
    public: Arrays

    @property
    def id(self) -> str:
        """Sixteen hex digits, the same at both ends: a hash of the public part and of the card, which contains the hash
        of Alice's weights."""
        return digest({"card": np.frombuffer(_text(self.card).encode(), np.uint8), **self.public})[:16]


class TrainedOptions(StageOptions, frozen=True):
    """Options of all enhancers with a model."""

    align: bool = True
    """Whether each frame's delay and common phase are removed; false only where radios share clock and phase."""
    model: str = ""
    """File with a model that a node or `save` wrote, in place of a training."""
    validation: Annotated[float, Meta(gt=0, le=0.5)] = 0.2
    """Last share of the training rounds, by which the model is validated."""
    gap: Annotated[int, Meta(ge=0, le=1_000_000)] = 8
    """Rounds left out before the validation rounds."""


class MappedOptions(TrainedOptions, frozen=True):
    """Options of those that predict Bob's CSI, from which both ends compute features as `identity` does."""

    step: Count = 8
    """Subcarriers averaged into one dimension."""
    scale: ScaleName = "complex"
    """db: 20·log10 |h|; magnitude: |h|; complex: Re h and Im h."""


_NOT_LEARNT = ("align", "model", "device", "step", "scale")
"""Options that do not affect what is learnt, or are stored among the card's parameters."""


class Trained(TrainableEnhancer):
    """Base of the enhancers with a model."""

    options_type = TrainedOptions
    options: TrainedOptions
    applied: ClassVar[tuple[str, ...]] = ()
    """Options that determine how a model is applied; a model with other values is refused. All other options determine
    the training only and need not be the same for an existing model."""

    maps_csi: ClassVar[bool] = True
    """Whether it predicts Bob's CSI at Alice; otherwise both ends compute features."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        o = self.options
        # enhancers with features of their own have neither option
        scale: ScaleName = getattr(o, "scale", "complex")
        self._reduction = Reduction(getattr(o, "step", 1), scale, "none", 1, o.align)
        values = msgspec.json.decode(msgspec.json.encode(o))  # as the card has them: lists, not tuples
        self._parameters = {name: values[name] for name in ("align", *self.applied)}
        self._recipe_card = {k: v for k, v in values.items() if k not in (*_NOT_LEARNT, *self.applied)}
        self._model: Model | None = None
        self._levels = False
        """Whether the vectors are levels, as for RSSI; follows from the model, or from the CSI of the training."""
        self._file = ""
        """File from which the model was read."""
        self._scores: dict[str, float] = {}
        if o.model:
            self.read(Path(o.model))

    # ------------------------------------------------------------ what a subclass defines

    @abstractmethod
    def _learn(self, alice: F64, bob: F64, split: Split, rng: np.random.Generator) -> Learned:
        """Learn from vectors (probe, element) of both ends; raises ValueError."""

    @abstractmethod
    def _apply(self, model: Model, role: str, vectors: F64) -> F64:
        """Return Bob's vectors as Alice predicts them (`maps_csi`: called for her only), or features of this role."""

    def _calibrate(self, alice: CsiSeries, bob: CsiSeries) -> Arrays:
        """Return what `_calibrated` needs, learnt before the alignment; private to Alice. Default: nothing."""
        return {}

    def _calibrated(self, calibration: Arrays, csi: CsiSeries) -> CsiSeries:
        """Return Alice's CSI as it is passed to the alignment."""
        return csi

    # ------------------------------------------------------------ the stage

    def transform(self, csi: CsiSeries, role: str) -> Features:
        """Return (probe, dimension) features, in the order of `_features.Reduction.apply` where `maps_csi`.

        NaN rows stay NaN. Raises InputError without a model, or where it was made for other subcarriers or antennas.
        """
        model = self._checked(role, csi.h.shape[1:], csi.subcarrier_hz)
        csi = self._as_learnt(csi)
        if self.maps_csi and role != "alice":
            return self._reduction.apply(self._reduction.phases(csi), csi)
        vectors = self._vectors(self._calibrated(model.private, csi) if role == "alice" else csi)
        present = np.isfinite(vectors).all(axis=1)
        try:
            out = self._apply(model, role, vectors[present]) if present.any() else np.zeros((0, 1))
        except (KeyError, ValueError) as exc:  # a file whose card and arrays do not match
            raise InputError(f"{self._called} cannot be applied: {type(exc).__name__}: {exc}") from exc
        found = np.full((vectors.shape[0], out.shape[1]), np.nan)
        found[present] = out
        if not self.maps_csi:
            return Features(values=found, rounds=csi.rounds)
        if present.any() and found.shape[1] != (1 if self._levels else 2) * math.prod(model.card["bob_shape"]):
            raise InputError(f"{self._called} predicts {found.shape[1]} numbers for {model.card['bob_shape']}")
        if not present.any():
            return self._reduction.apply(np.full(csi.h.shape, np.nan + 0j), csi)
        shape = model.card["bob_shape"]
        predicted = 10.0 ** (found / 20.0).reshape(-1, *shape) if self._levels else unstacked(found, shape)
        return self._reduction.apply(predicted, csi)

    def _as_learnt(self, csi: CsiSeries) -> CsiSeries:
        """Return CSI in the model's form: levels for a model of levels; raises InputError where it needs phases."""
        if self._levels:
            return of_levels(csi)
        if levels_only(csi):
            raise InputError(f"{self._called} was trained on CSI with phases, this CSI has levels only")
        return csi

    def _vectors(self, csi: CsiSeries) -> F64:
        """Return (probe, element) in the subclass's form; values without a level in dB are NaN."""
        if not self._levels:
            return stacked(self._reduction.phases(csi))
        with np.errstate(divide="ignore"):
            out: F64 = 20.0 * np.log10(np.abs(csi.h.astype(np.complex128)).reshape(csi.h.shape[0], -1))
        out[~np.isfinite(out)] = np.nan
        return out

    def _joined(self, vectors: F64) -> Any:
        """Return vectors in the form of linear methods: complex (probe, element / 2), or real where they are levels."""
        return vectors if self._levels else as_complex(vectors)

    def _split(self, values: Any) -> F64:
        """Undo `_joined`."""
        return np.asarray(values) if self._levels else stacked(values)

    def _take(self, model: Model) -> None:
        self._model, self._levels = model, bool(model.card.get("levels", False))

    def check(self, shape: tuple[int, ...], subcarrier_hz: F64) -> None:
        for role in ("alice", "bob"):
            self._checked(role, shape, subcarrier_hz)

    def _checked(self, role: str, shape: tuple[int, ...], subcarrier_hz: F64) -> Model:
        model = self._model
        if model is None:
            raise InputError(
                f"enhance {self._name!r} has no model yet: it has to be trained, or given as option 'model'"
            )
        if role == "alice" and not model.private and model.card["private_sha256"] != digest({}):
            raise InputError(f"{self._called} is Bob's part of a model; accepted: Alice's part, which has the weights")
        theirs, theirs_hz = model.card["alice_shape" if role == "alice" else "bob_shape"], model.card["subcarrier_hz"]
        if role == "eve" and self.maps_csi:
            return model  # Bob's side does not use the model
        if list(shape) != theirs:
            raise InputError(
                f"{self._called} was trained for (antenna, antenna, subcarrier) = {tuple(theirs)}, "
                f"this CSI is {tuple(shape)}"
            )
        if not np.allclose(subcarrier_hz, theirs_hz, rtol=1e-6, atol=1.0):
            raise InputError(
                f"{self._called} was trained for another waveform: subcarriers {theirs_hz[0]:g} to {theirs_hz[-1]:g} "
                f"Hz, these are {subcarrier_hz[0]:g} to {subcarrier_hz[-1]:g} Hz"
            )
        return model

    @property
    def _called(self) -> str:
        return f"enhance {self._name!r}: " + (f"model {self._file!r}" if self._file else "the model")

    @property
    def _name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    # ------------------------------------------------------------ training

    def fit(self, alice: CsiSeries, bob: CsiSeries, rng: np.random.Generator) -> None:
        """Learn from the probes that both ends have; raises ValueError for CSI that cannot be learnt from."""
        if alice.h.shape[0] != bob.h.shape[0] or not np.array_equal(alice.rounds, bob.rounds):
            raise ValueError(
                f"Alice's and Bob's CSI are of other rounds: {alice.h.shape[0]} and {bob.h.shape[0]} of them"
            )
        levels = self._reduction.levels(alice) or self._reduction.levels(bob)
        least = 1 if levels else MIN_SUBCARRIERS
        if alice.h.shape[-1] < least or alice.h.shape[-1] != bob.h.shape[-1]:
            raise ValueError(
                f"{alice.h.shape[-1]} subcarriers at Alice, {bob.h.shape[-1]} at Bob; accepted: the same, from {least}"
            )
        self._levels = levels
        if levels:
            alice, bob = of_levels(alice), of_levels(bob)
        # Values that were not measured, or have no level in dB, count as missing.
        whole_csi = [
            np.isfinite(self._vectors(c) if levels else c.h.reshape(len(c.h), -1)).all(axis=1) for c in (alice, bob)
        ]
        both = whole_csi[0] & whole_csi[1]
        if both.sum() < MIN_PROBES:
            raise ValueError(f"{both.sum()} of {both.size} probes have CSI at both ends, accepted from {MIN_PROBES}")
        alice, bob = (CsiSeries(c.h[both], c.rounds[both], c.subcarrier_hz) for c in (alice, bob))
        self._check_changing(alice, bob)
        calibration = self._calibrate(alice, bob)
        before, b = self._vectors(alice), self._vectors(bob)
        a = self._vectors(self._calibrated(calibration, alice))
        split = Split.of(len(a), self.options.validation, self.options.gap)
        learned = self._learn(a, b, split, rng)
        learned.private.update(calibration)
        card = {
            "schema": 1,
            "enhance": self._name,
            "parameters": self._parameters,
            "recipe": self._recipe_card,
            "alice_shape": list(alice.h.shape[1:]),
            "bob_shape": list(bob.h.shape[1:]),
            "subcarrier_hz": [float(f) for f in alice.subcarrier_hz],
            "data": {
                "alice_sha256": digest({"h": alice.h}), "bob_sha256": digest({"h": bob.h}),
                "rounds": [int(alice.rounds[0]), int(alice.rounds[-1])], "pairs": len(a),
                "train": int(split.train.size), "validate": int(split.validate.size),
            },
            "private_sha256": digest(learned.private),
            **({"levels": True} if levels else {}),
            "history": learned.history,
            "versions": {"testbed": __version__, "numpy": np.__version__, **_torch_version()},
        }  # fmt: skip
        self._take(Model(card, learned.private, learned.public))
        self._scores = self._score(*(x[split.validate] for x in (before, a, b)))

    def _check_changing(self, alice: CsiSeries, bob: CsiSeries) -> None:
        """Raise ValueError where a column never changes."""
        n = alice.h.shape[-1]
        for end, csi in (("Alice", alice), ("Bob", bob)):
            vectors = self._vectors(csi) if self._levels else stacked(csi.h)
            constant = np.flatnonzero(np.ptp(vectors, axis=0) == 0)
            if constant.size:
                part = "the level" if self._levels else ("Re" if constant[0] < vectors.shape[1] // 2 else "Im")
                raise ValueError(
                    f"{end}'s CSI: {part} of subcarrier {constant[0] % n} never changes over {len(vectors)} "
                    f"probes ({constant.size} such columns): there is nothing to learn from it"
                )

    def _score(self, before: F64, alice: F64, bob: F64) -> dict[str, float]:
        """Return the mean squared difference of the ends before and after the enhancement, relative to Bob's power.

        For levels in dB, whose zero is arbitrary, it is relative to their variance.
        """
        assert self._model is not None
        after = self._apply(self._model, "alice", alice)
        target = bob if self.maps_csi else self._apply(self._model, "bob", bob)
        scores = {"nmse_after": self._nmse(after, target)}
        if before.shape == bob.shape:
            scores["nmse_before"] = self._nmse(before, bob)
        return scores

    def _nmse(self, found: F64, wanted: F64) -> float:
        power = wanted.var(axis=0).mean() if self._levels else (wanted**2).mean()
        return float(((found - wanted) ** 2).mean() / power)

    @property
    def model_id(self) -> str | None:
        return None if self._model is None else self._model.id

    @property
    def card(self) -> dict[str, Any]:
        if self._model is None:
            raise InputError(f"enhance {self._name!r} has no model")
        return self._model.card

    @property
    def scores(self) -> dict[str, float]:
        return dict(self._scores)

    def fresh(self) -> Self:
        new = copy.copy(self)
        new._model, new._file, new._scores = None, "", {}
        return new

    # ------------------------------------------------------------ messages and files

    def publication(self) -> dict[str, Any]:
        """Return card and public part, arrays as bytes of an .npz file."""
        if self._model is None:
            raise ValueError("there is no model to publish")
        return {"card": _text(self._model.card), "public": packed(self._model.public)}

    def adopt(self, publication: Mapping[str, Any]) -> None:
        """Take over Alice's model: its card and the part that Bob needs. Raises ValueError for anything else."""
        card = self._read_card(publication["card"])
        self._take(Model(card, {}, unpacked(publication["public"])))
        self._scores = {}

    def dump(self) -> bytes:
        if self._model is None:
            raise ValueError("there is no model to keep")
        m = self._model
        arrays = {f"private.{k}": v for k, v in m.private.items()} | {f"public.{k}": v for k, v in m.public.items()}
        return packed({"card": np.frombuffer(_text(m.card).encode(), np.uint8), **arrays})

    def load(self, data: bytes) -> None:
        arrays = unpacked(data)
        if "card" not in arrays:
            raise ValueError("no model card in it")
        text = arrays.pop("card")
        if text.dtype != np.uint8:
            raise ValueError("no model card in it")
        card = self._read_card(text.tobytes().decode("utf-8"))
        parts: dict[str, Arrays] = {"private": {}, "public": {}}
        for name, values in arrays.items():
            part, _, key = name.partition(".")
            if part not in parts:
                raise ValueError(f"unknown array {name!r}")
            parts[part][key] = values
        if parts["private"] and digest(parts["private"]) != card["private_sha256"]:
            raise ValueError("the weights are not those of the card (SHA-256 differs)")
        self._take(Model(card, **parts))

    def _read_card(self, text: Any) -> dict[str, Any]:
        try:
            card = json.loads(text)
            check_plain(card)
        except (RecursionError, TypeError) as exc:
            raise ValueError(f"no model card: {exc}") from exc
        if not isinstance(card, dict) or card.get("schema") != 1:
            raise ValueError("no model card of schema 1")
        if card.get("enhance") != self._name:
            raise ValueError(f"a model of enhance {str(card.get('enhance'))[:40]!r}, this is {self._name!r}")
        theirs = card.get("parameters")
        if not isinstance(theirs, dict):
            raise ValueError("the card's parameters are missing")
        other = [(k, theirs.get(k), own) for k, own in self._parameters.items() if theirs.get(k) != own]
        if other:
            given, here = (", ".join(f"{x[0]} = {_toml(x[i])}" for x in other) for i in (1, 2))
            raise ValueError(
                f"it was trained with {given}, here {here}; accepted: the same in enhance_options "
                "(options that only the training uses may differ)"
            )
        for key in ("alice_shape", "bob_shape"):
            shape = card.get(key)
            if not isinstance(shape, list) or len(shape) != 3 or any(type(n) is not int or n < 1 for n in shape):
                raise ValueError(f"the card's {key} is missing or wrong")
        carriers = card.get("subcarrier_hz")
        if not isinstance(carriers, list) or not all(isinstance(f, float) for f in carriers):
            raise ValueError("the card's subcarrier_hz is missing or wrong")
        same = {len(carriers), card["alice_shape"][-1], card["bob_shape"][-1]}
        if len(same) > 1 or "private_sha256" not in card:
            raise ValueError("the card is incomplete")
        return card

    def save(self, path: Path) -> None:
        """Write the model (`path`, an .npz file) and beside it its card as readable text (.json)."""
        write_whole(path, self.dump(), private=False)
        write_whole(path.with_suffix(".json"), json.dumps(self.card, indent=1) + "\n", private=False)

    def read(self, path: Path) -> None:
        """Read a model that `save` or a node wrote; raises InputError for anything else. No code in it is executed."""
        try:
            if path.stat().st_size > 2 * MAX_MODEL_BYTES:
                raise ValueError(f"{path.stat().st_size} bytes, accepted up to {2 * MAX_MODEL_BYTES}")
            self.load(read_whole(path, 2 * MAX_MODEL_BYTES))
        except OSError as exc:
            raise InputError(f"enhance {self._name!r}: model {str(path)!r}: {exc.strerror}") from exc
        except ValueError as exc:
            raise InputError(f"enhance {self._name!r}: model {str(path)!r}: {exc}") from exc
        self._file = str(path)


# ---------------------------------------------------------------- vectors


def stacked(h: NDArray[np.complexfloating[Any, Any]]) -> F64:
    """Return (probe, element): Re of all antenna pairs and subcarriers, then Im (paper B, section 3)."""
    flat = h.reshape(h.shape[0], -1)
    return np.concatenate([flat.real, flat.imag], axis=1, dtype=np.float64)


def unstacked(vectors: F64, shape: list[int]) -> C128:
    """Return (probe, antenna, antenna, subcarrier), the inverse of `stacked`."""
    half = vectors.shape[1] // 2
    return (vectors[:, :half] + 1j * vectors[:, half:]).reshape(-1, *shape)


def as_complex(vectors: F64) -> C128:
    half = vectors.shape[1] // 2
    return np.asarray(vectors[:, :half] + 1j * vectors[:, half:])


# ---------------------------------------------------------------- bytes


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of named arrays, in hex."""
    state = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        state.update(f"{name}:{values.dtype.str}:{values.shape}:".encode())
        state.update(np.ascontiguousarray(values).tobytes())
    return state.hexdigest()


def packed(arrays: Arrays) -> bytes:
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)
    return out.getvalue()


def unpacked(data: Any) -> Arrays:
    """Return the arrays of an .npz file in memory; raises ValueError for anything else, pickles included."""
    # The second of these prefixes is that of an archive without arrays.
    if not isinstance(data, bytes) or data[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        raise ValueError("no .npz file")
    arrays = read_npz(data, MAX_MODEL_BYTES, kinds="fcui")
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise ValueError(f"array {name!r} is not of finite numbers")
    return arrays


def _text(card: Mapping[str, Any]) -> str:
    return json.dumps(card, sort_keys=True)


def _toml(value: Any) -> str:
    """Return a card's plain value as an experiment file writes it; '' where the card does not have it."""
    return "nothing" if value is None else json.dumps(value)[:80]


def _torch_version() -> dict[str, str]:
    import sys

    torch = sys.modules.get("torch")  # only if the training imported it
    return {} if torch is None else {"torch": str(torch.__version__)}
