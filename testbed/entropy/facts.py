"""The facts of a block when its key's length is decided: Alice's string, Eve's measurements, what is public.

All of this is in the memory of Alice's process. An attack gets the view that `Facts.hide` returns, from which labels,
features and CSI of the symbols that it has to guess are removed, so that it cannot look them up.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core.errors import InputError
from testbed.core.types import F64, I64, Bits

Mask = NDArray[np.bool_]
C128 = NDArray[np.complex128]

HIDDEN = -1
"""A label that is unknown in a view made by `Facts.hide`."""
MOST_BITS = 8


@dataclass(frozen=True, slots=True)
class Heard:
    """The measurements of one link by one antenna of one Eve, over her whole recording so far."""

    name: str
    """Node, antenna and link, as "eve.0:alice": node eve, antenna 0, Alice's transmissions."""
    rounds: I64
    """(round,) numbers, strictly ascending; they need not be numbers of Alice's rounds."""
    time_s: F64
    """(round,) times on Eve's clock, not used for pairing."""
    values: F64
    """(round, dimension) features; NaN where she received nothing."""
    csi: C128 | None = None
    """(round, channel) complex, one or more for each dimension; the common phase of a round is the same for all
    antennas of a node and otherwise unknown. None where only features were reported."""

    def __post_init__(self) -> None:
        _series(f"Eve's series {self.name}", self.rounds, self.time_s, self.values)
        _csi(f"Eve's series {self.name}", self.csi, self.rounds.size)

    @property
    def node(self) -> str:
        """Name of the Eve who measured this: the name before the first dot or colon."""
        return self.name.split(":")[0].split(".")[0]

    @property
    def link(self) -> str:
        """The transmitter: the name after the last colon."""
        return self.name.split(":")[-1]


@dataclass(frozen=True, slots=True)
class Earlier:
    """Alice's measurements before this block that Eve knows in full: an earlier block, training, an earlier run.

    Eve is assumed to know the analogue features and not only the labels, which makes her stronger.
    """

    name: str
    same_run: bool
    """Whether its round numbers are counted as this block's are; those of an earlier run have another origin."""
    rounds: I64
    """(probe,) strictly ascending."""
    time_s: F64
    features: F64
    """(probe, column) as `Facts.features`."""
    states: I64 | None = None
    """(probe,) opaque number of the surface's state; equal numbers are equal states, across blocks as well."""

    def __post_init__(self) -> None:
        _series(f"earlier series {self.name}", self.rounds, self.time_s, self.features)
        if self.states is not None:
            _size(f"earlier series {self.name}: states", self.states, self.rounds.size)


@dataclass(frozen=True, slots=True)
class Facts:
    """One block. Symbols stand in ascending order of (probe, dimension)."""

    value: I64
    """(symbol,) Alice's label as a number, 0 … 2**bits − 1 in any order of cells; `HIDDEN` in a view."""
    bits: I64
    """(symbol,) label bits, 1 to 8, the same for all symbols of a dimension."""
    probe: I64
    """(symbol,) row of `features`."""
    dimension: I64
    """(symbol,)."""
    published: Mask
    """(symbol,) whether the whole label was published; such symbols are known to every attack and make no key."""
    rounds: I64
    """(probe,) global round number of each probe, strictly ascending."""
    time_s: F64
    """(probe,) Alice's clock."""
    features: F64
    """(probe, column) the quantizer's input; NaN where there is none."""
    columns: I64 | None = None
    """(dimension, feature) the columns of `features` from which a dimension's label follows; None: its own column."""
    csi: C128 | None = None
    """(probe, channel) Alice's CSI, for fits on her side; None: the features are used."""
    heard: tuple[Heard, ...] = ()
    patterns: C128 | None = None
    """(probe, element) reflection coefficient of every element, where the patterns are public; else None."""
    responses: C128 | None = None
    """(probe, path) responses of the surface's paths to each pattern by the scene's geometry, where both are public."""
    states: I64 | None = None
    """(probe,) opaque number of the surface's state; None where there is no surface."""
    state_bits: int | None = None
    """Number of bits of a secret state that affect a channel: elements times bits each. The bits of one element less
    where no path leads past the surface: amplitudes then do not change with a phase that all elements have in common.
    None: states are not secret."""
    earlier: tuple[Earlier, ...] = ()
    scratch: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """Shared by all views of a block: for results that follow from Eve's side alone and take time to compute. An attack
    must not keep anything here that follows from Alice's labels; the judge's canary finds it."""

    view: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """The same for this view alone: for results that the attacks of one fold have in common."""

    def __post_init__(self) -> None:
        n, (n_probes, n_columns) = self.value.size, _series("Alice's features", self.rounds, self.time_s, self.features)
        for name in ("value", "bits", "probe", "dimension", "published"):
            _size(f"Alice's symbols: {name}", getattr(self, name), n)
        _csi("Alice's CSI", self.csi, n_probes)
        for name, array in (("patterns", self.patterns), ("responses", self.responses), ("states", self.states)):
            if array is not None:
                _size(name, array, n_probes)
        if self.patterns is not None and (self.patterns.ndim != 2 or not np.isfinite(self.patterns).all()):
            raise InputError("patterns are not finite numbers of shape (probe, element)")
        self._check_symbols(n_probes, n_columns)
        for series in self.earlier:
            if series.features.shape[1] != n_columns:
                raise InputError(
                    f"earlier series {series.name} has {series.features.shape[1]} columns; accepted: {n_columns}"
                )

    def _check_symbols(self, n_probes: int, n_columns: int) -> None:
        _range("Alice's symbols: bits", self.bits, 1, MOST_BITS)
        _range("Alice's symbols: probe", self.probe, 0, n_probes - 1)
        n_dimensions = n_columns if self.columns is None else self.columns.shape[0]
        _range("Alice's symbols: dimension", self.dimension, 0, n_dimensions - 1)
        if self.columns is not None:
            _range("columns", self.columns, 0, n_columns - 1)
        wrong = np.flatnonzero((self.value < HIDDEN) | (self.value >= 1 << self.bits))
        if wrong.size:
            i = int(wrong[0])
            raise InputError(f"label {self.value[i]} of symbol {i}; accepted: 0 to {(1 << int(self.bits[i])) - 1}")
        place = self.probe * n_dimensions + self.dimension
        if (np.diff(place) <= 0).any():
            raise InputError("Alice's symbols are not in ascending order of (probe, dimension), each once")
        depth = self.depths
        if (depth[self.dimension] != self.bits).any():
            raise InputError("Alice's symbols of one dimension have different numbers of bits; accepted: one number")

    @classmethod
    def of_bits(cls, bits: Bits, published: Mask, rounds: I64, time_s: F64, features: F64, **rest: Any) -> Facts:
        """Build from bits in the order (probe, dimension, level bit) and (bit,) which of them were published.

        A label is the binary number that a symbol's bits form, whatever the code. A symbol of which only some bits
        were published counts as kept, with all its bits: the caller then has to subtract the published bits of kept
        symbols from the length (`length.key_length`, published_bits).
        """
        new = np.ones(bits.values.size, np.bool_)
        new[1:] = (np.diff(bits.probe) != 0) | (np.diff(bits.dimension) != 0)
        first = np.flatnonzero(new)
        length = np.diff(np.append(first, bits.values.size))
        place = np.arange(bits.values.size) - np.repeat(first, length)
        shifted = bits.values.astype(np.int64) << (np.repeat(length, length) - 1 - place)
        every = np.logical_and.reduceat(published, first) if first.size else np.zeros(0, np.bool_)
        value = np.add.reduceat(shifted, first) if first.size else np.zeros(0, np.int64)
        return cls(
            value, length, bits.probe[first], bits.dimension[first], every, rounds, time_s, features, **rest
        )  # fmt: skip

    # ------------------------------------------------------------ sizes

    @property
    def n_dimensions(self) -> int:
        return self.features.shape[1] if self.columns is None else self.columns.shape[0]

    @property
    def n_labels(self) -> int:
        """Columns of a prediction: 2**(most bits of a label)."""
        return 1 << int(self.bits.max(initial=1))

    @property
    def depths(self) -> I64:
        """(dimension,) bits of a label; 0 where a dimension has no symbol."""
        out = np.zeros(self.n_dimensions, np.int64)
        out[self.dimension] = self.bits
        return out

    @property
    def kept(self) -> I64:
        """(kept,) indices of the symbols that make the key."""
        return np.flatnonzero(~self.published)

    @property
    def kept_bits(self) -> int:
        """M: the label bits of the kept symbols."""
        return int(self.bits[~self.published].sum())

    @property
    def drawn_bits(self) -> float | None:
        """Entropy in bits of the draw of this block's surface states; None without a secret surface.

        Only states that were not held in an earlier series count. They were drawn uniformly, and it is known that they
        differ: log2 of K·(K − 1)·…, with K the number of possible states.
        """
        if self.states is None or self.state_bits is None:
            return None
        before = np.concatenate([np.zeros(0, np.int64), *(e.states for e in self.earlier if e.states is not None)])
        before = np.unique(before[before >= 0])
        new = np.setdiff1d(self.states, before).size
        if self.state_bits > 32:  # the earlier states make no difference to so many
            return float(new * self.state_bits)
        left = (1 << self.state_bits) - before.size - np.arange(new)
        return float(np.log2(np.maximum(left, 1)).sum())

    @property
    def surface_bits(self) -> float | None:
        """Largest entropy in bits of the kept labels where nothing but the surface changes; None without a secret one.

        All labels then follow from the states: it is `drawn_bits`, less the number of published label bits.
        """
        drawn = self.drawn_bits
        return None if drawn is None else max(0.0, drawn - float(self.bits[self.published].sum()))

    @property
    def main_column(self) -> I64:
        """(dimension,) the first column of each dimension."""
        return np.arange(self.n_dimensions) if self.columns is None else self.columns[:, 0]

    @property
    def is_scalar(self) -> bool:
        """Whether every label follows from one column."""
        return self.columns is None or self.columns.shape[1] == 1

    # ------------------------------------------------------------ views

    def hide(self, test: I64) -> Facts:
        """Return these facts without Alice's values at the symbols `test`: label, features, CSI of the whole probe."""
        value, features = self.value.copy(), self.features.copy()
        value[test] = HIDDEN
        if self.columns is None:
            features[self.probe[test], self.dimension[test]] = np.nan
        else:
            features[self.probe[test][:, None], self.columns[self.dimension[test]]] = np.nan
        csi = self.csi
        if csi is not None:
            csi = csi.copy()
            csi[self.probe[test]] = np.nan
        return replace(self, value=value, features=features, csi=csi, view={})


def zero_filled(x: F64) -> F64:
    """Return x with 0 in place of NaN, several times as fast as `np.nan_to_num`, which looks for infinities as well."""
    return np.where(np.isnan(x), 0.0, x)


# ---------------------------------------------------------------- checks, one line each


def _series(what: str, rounds: I64, time_s: F64, values: F64) -> tuple[int, int]:
    if values.ndim != 2 or rounds.ndim != 1 or values.shape[0] != rounds.size:
        raise InputError(
            f"{what}: values of shape {values.shape} for {rounds.size} rounds; accepted: (round, dimension)"
        )
    _size(f"{what}: time_s", time_s, rounds.size)
    if not np.issubdtype(rounds.dtype, np.integer) or (np.diff(rounds) <= 0).any():
        raise InputError(f"{what}: round numbers do not ascend strictly")
    if not np.isfinite(time_s).all():
        raise InputError(f"{what}: a time is not finite")
    if np.isinf(values).any():
        raise InputError(f"{what}: a feature is infinite; accepted: finite numbers, NaN where nothing was received")
    return int(values.shape[0]), int(values.shape[1])


def _csi(what: str, csi: C128 | None, n: int) -> None:
    if csi is not None and (csi.ndim != 2 or csi.shape[0] != n or np.isinf(csi).any()):
        raise InputError(f"{what}: CSI of shape {csi.shape}; accepted: ({n}, channel) of finite numbers or NaN")


def _size(what: str, array: NDArray[Any], n: int) -> None:
    if array.shape[:1] != (n,):
        raise InputError(f"{what} has shape {array.shape}; accepted: {n} rows")


def _range(what: str, array: NDArray[Any], least: int, most: int) -> None:
    if array.size and (array.min() < least or array.max() > most):
        raise InputError(f"{what} runs from {array.min()} to {array.max()}; accepted: {least} to {most}")
