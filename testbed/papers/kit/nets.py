"""The base class of nets that design precoders or phases for a scene; a net is stored with a card that describes it."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

from testbed.core import seeds
from testbed.core.archives import check_zip
from testbed.core.errors import InputError
from testbed.core.whole import read_whole, write_whole

MAX_BYTES = 1 << 31
MAX_CARD_BYTES = 1 << 24


class Net:
    """A trained (or fresh) net with its card. Subclasses make `net`."""

    NAME: ClassVar[str]
    SCENE: ClassVar[type[Any]]
    """The dataclass of the scene that a net is trained for."""

    def __init__(self, scene: Any, seed: int, **options: Any) -> None:
        import torch

        self.scene, self.seed, self.options = scene, seed, options
        self.history: list[float] = []
        """The loss (supervised) or the mean rate in bits over each epoch's channels."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(seed, self.NAME))
            self.net = self._build(**options)

    def _build(self, **options: Any) -> Any:
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write the weights (`path`) and a card that describes them (`path` with .json)."""
        import torch

        out = io.BytesIO()  # on a full disk, the library's own writing ends in an error that does not say so
        torch.save(self.net.state_dict(), out)
        write_whole(path, out.getvalue(), private=False)
        card = {"net": self.NAME, "scene": asdict(self.scene), "seed": self.seed, "options": self.options}
        card |= {"history": self.history, "torch": torch.__version__}
        write_whole(path.with_suffix(".json"), json.dumps(card), private=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises InputError for anything else. No code in the file is executed."""
        import torch

        try:
            check_zip(path, MAX_BYTES)
            card = json.loads(read_whole(path.with_suffix(".json"), MAX_CARD_BYTES))
            if card["net"] != cls.NAME:
                raise ValueError(f"it is a {card['net']}")
            net = cls(cls.SCENE(**card["scene"]), card["seed"], **card["options"])
            net.net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
            net.history = card["history"]
        except Exception as exc:  # torch, pickle, zipfile and zlib raise errors of their own kinds
            raise InputError(f"{path}: no trained {cls.NAME}: {(str(exc) or 'empty').splitlines()[0]}") from exc
        return net


def check_training(**numbers: float) -> None:
    """Raise InputError if one of the training's numbers is not above 0."""
    for name, value in numbers.items():
        if not value > 0:
            raise InputError(f"training with {name} = {value:g}, accepted: above 0")
