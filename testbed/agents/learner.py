"""Base of all learners: the task, the agents' views of the state, replay memory, curves, checkpoints."""

from __future__ import annotations

import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch

from testbed.agents.beams import Beams
from testbed.agents.environment import Environment
from testbed.agents.frames import FRAMES, VIEWS, Seen, action_size, look, state_size
from testbed.agents.predictor import Predictor
from testbed.agents.setting import Setting, Stack
from testbed.agents.sources import Series
from testbed.core import seeds
from testbed.core.archives import check_zip
from testbed.core.errors import InputError
from testbed.core.whole import read_whole, require_regular, write_whole

MAX_CARD_BYTES = 1 << 22
MAX_CHECKPOINT_BYTES = 1 << 31


@dataclass(frozen=True)
class Task:
    """Runs trained side by side: one setting and one seed each."""

    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    view: str = "full"
    """What the agents observe of Eve. `full`: her channel and mode; `lstm`, `kalman`: a prediction of them from Fred's
    history; `last`: the latest estimate of Fred's channel in place of hers; `none`: nothing. They always observe the
    legitimate channel."""
    frame: str = "antenna"
    """Coordinates of states and actions: `antenna`, as in the paper, or `turned` (`frames`)."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if len(self.settings) != len(self.seeds) or not self.seeds:
            raise InputError(
                f"agents: {len(self.settings)} settings for {len(self.seeds)} seeds; accepted: one each, one or more"
            )
        for what, value, accepted in (("view", self.view, VIEWS), ("frame", self.frame, FRAMES)):
            if value not in accepted:
                raise InputError(f"agents: no {what} {value!r}; accepted: {', '.join(accepted)}")


class Replay:
    """The latest transitions of every run; samples are drawn uniformly."""

    def __init__(self, n_runs: int, capacity: int, widths: Sequence[int], device: str) -> None:
        self._columns = [torch.zeros(n_runs, capacity, w, device=device) for w in widths]
        self._capacity, self._next, self.size = capacity, 0, 0

    def add(self, *rows: torch.Tensor) -> None:
        """Append rows (run, copy, width)."""
        n = rows[0].shape[1]
        first = min(n, self._capacity - self._next)
        for column, row in zip(self._columns, rows, strict=True):
            column[:, self._next : self._next + first] = row[:, :first]
            column[:, : n - first] = row[:, first:]
        self._next = (self._next + n) % self._capacity
        self.size = min(self.size + n, self._capacity)

    def sample(self, n: int, generator: torch.Generator) -> list[torch.Tensor]:
        """Return n rows of every column, (run, n, width), with the same row numbers in all runs."""
        index = torch.randint(self.size, (n,), generator=generator, device=self._columns[0].device)
        return [column[:, index] for column in self._columns]

    def state_dict(self) -> dict[str, Any]:
        return {"columns": [c[:, : self.size].clone() for c in self._columns], "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self._columns, state["columns"], strict=True):
            if saved.shape[0] != mine.shape[0] or saved.shape[1] > mine.shape[1] or saved.shape[2] != mine.shape[2]:
                raise InputError(
                    f"agents: the checkpoint's replay is {tuple(saved.shape)} (run, transition, width), "
                    f"this one {tuple(mine.shape)}; accepted: as many runs, the same width, no more transitions"
                )
            if state["next"] != saved.shape[1] < mine.shape[1]:
                raise InputError(
                    f"agents: the checkpoint's replay is full at {saved.shape[1]} transitions and its oldest are not "
                    f"the first; accepted: a capacity of {saved.shape[1]} here too, not {mine.shape[1]}"
                )
            mine[:, : saved.shape[1]] = saved
            self.size = int(saved.shape[1])
        self._next = state["next"]


class Learner(ABC):
    """A learner of all its task's runs. Subclasses list their networks and optimisers in `_modules`, `_optimisers`."""

    name: ClassVar[str]
    config_type: ClassVar[type[Any]]
    """A frozen dataclass of hyper-parameters, `n_envs` among them."""
    config: Any

    def __init__(
        self, task: Task, config: Any = None, predictor: Predictor | None = None, channels: Series | None = None
    ) -> None:
        """`channels` to train on; by default those of the AR(1) model."""
        if task.view == "lstm" and predictor is None:
            raise InputError(
                f"agents: {self.name} with the view 'lstm' needs a predictor; accepted: one that is trained"
            )
        self.task, self.config, self.predictor = task, config or self.config_type(), predictor
        self.stack = Stack.of(task.settings, task.device)
        name = "/".join(map(str, task.seeds))
        self.env = Environment(
            task.settings, self.config.n_envs, seeds.derive(0, self.name, name), task.device, channels
        )
        self.generator = torch.Generator(task.device).manual_seed(seeds.derive(1, self.name, name))
        self.n_state = state_size(self.stack.n_antennas, task.view, task.frame)
        self.n_action = action_size(self.stack.n_antennas, task.frame)
        self.n_steps = 0
        """Steps taken in every copy."""
        self.curve: list[tuple[int, list[float]]] = []
        """(transitions of a run so far, mean reward of every run since the last entry)."""
        self._earned, self._counted = torch.zeros(self.stack.n_runs, device=task.device), 0
        self._build()

    @abstractmethod
    def _build(self) -> None:
        """Make the networks, their optimisers and the memory of past steps."""

    def train(
        self, n_steps: int, writer: Any = None, log_every: int = 200, tell: Callable[[float], None] = lambda share: None
    ) -> None:
        """Take steps, learn from them. `writer`: a `torch.utils.tensorboard.SummaryWriter` to log to.

        Raises TestbedError where a reward or a loss stops being finite.
        """
        for done in range(n_steps):
            tell(done / n_steps)
            reward = self._step()
            self.n_steps += 1
            self._earned += reward.mean(-1)
            self._counted += 1
            if self.n_steps % log_every == 0:
                means = (self._earned / self._counted).tolist()
                self.curve.append((self.n_steps * self.config.n_envs, means))
                self._earned.zero_()
                self._counted = 0
                if writer is not None:
                    for i, mean in enumerate(means):
                        writer.add_scalar(f"{self.name}/reward/run{i}", mean, self.curve[-1][0])

    def _begin(self) -> None:
        """Observe the environment again, because its state was set anew."""

    @abstractmethod
    def _step(self) -> torch.Tensor:
        """Take one step in every copy and learn; returns the rewards (run, copy)."""

    @abstractmethod
    def act(self, state: torch.Tensor) -> torch.Tensor:
        """Return the deterministic joint action (run, batch, `n_action`) in states (run, batch, `n_state`)."""

    def look(self, env: Environment) -> Seen:
        """Return what this learner's agents see of an environment."""
        with torch.no_grad():
            return look(env, self.task.view, self.task.frame, self.predictor)

    def policy(self, env: Environment) -> Beams:
        """Return the beams of the present policy, without exploration."""
        seen = self.look(env)
        with torch.no_grad():
            return seen.beams(self.act(seen.state))

    @abstractmethod
    def _parts(self) -> dict[str, Any]:
        """Return everything with a `state_dict`, by name."""

    def save(self, path: Path) -> None:
        """Write a checkpoint from which training continues exactly, and its card beside it (`path` with .json)."""
        state = {
            "parts": {k: v.state_dict() for k, v in self._parts().items()},
            "env": self.env.state_dict(),
            "generator": self.generator.get_state(),
            "n_steps": self.n_steps, "curve": self.curve, "earned": self._earned, "counted": self._counted,
            "predictor": None if self.predictor is None else self.predictor.state_dict(),
        }  # fmt: skip
        write_whole(path, packed(state), private=False)
        card = {"algorithm": self.name, "task": asdict(self.task), "config": asdict(self.config)}
        if self.predictor is not None:
            card["predictor"] = asdict(self.predictor.config)
        write_card(path, card)

    def load(self, path: Path, to_act: bool = False) -> None:
        """Continue from a checkpoint; raises InputError where it is none, or of another algorithm, shape or channels.

        `to_act`: do not restore the environment, whose channels may not be available here. The policy is the saved one,
        but training would not continue from the same state.
        """
        state, card = read(path)
        if card["algorithm"] != self.name:
            raise InputError(f"{path}: a checkpoint of {card['algorithm']!r}; accepted: {self.name!r}")
        # Two views may have the same shape and different meanings.
        if (saved := task_of(card)).view != self.task.view or saved.frame != self.task.frame:
            raise InputError(
                f"{path}: a checkpoint of view {saved.view!r}, frame {saved.frame!r}; "
                f"accepted: {self.task.view!r}, {self.task.frame!r}"
            )
        try:
            for name, part in self._parts().items():
                part.load_state_dict(state["parts"][name])
            if not to_act:
                self.env.load_state_dict(state["env"])
            self.generator.set_state(state["generator"].cpu())
            if self.predictor is not None:
                self.predictor.load_state_dict(state["predictor"], to_act)
            self.n_steps, self._counted = state["n_steps"], state["counted"]
            self.curve = [(int(n), list(means)) for n, means in state["curve"]]
            self._earned.copy_(state["earned"])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as exc:
            raise InputError(
                f"{path}: does not fit: {one_line(exc)}; accepted: a checkpoint for  {self.stack.n_runs} runs, "
                f"{self.stack.n_antennas} antennas, {self.task.view} view, {self.task.frame} frame, {self.config}"
            ) from exc
        self._begin()


def packed(state: dict[str, Any]) -> bytes:
    """Return tensors and plain values as the content of a checkpoint; on a full disk, the library's own writing ends in
    an error of its own that does not say so."""
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write a checkpoint's card beside it, with the suffix .json."""
    write_whole(path.with_suffix(".json"), json.dumps(card, indent=1), private=False)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a checkpoint's tensors and its card; raises InputError. No code in the file is run."""
    try:
        card = json.loads(read_whole(path.with_suffix(".json"), MAX_CARD_BYTES))
        require_regular(path)
        if not zipfile.is_zipfile(path):
            raise ValueError("not what torch.save writes")  # torch.load would try to read it in its old format
        check_zip(path, MAX_CHECKPOINT_BYTES)
        state = torch.load(path, weights_only=True, map_location="cpu")
        if not (isinstance(card, dict) and isinstance(state, dict)):
            raise TypeError("its card or its tensors are no dictionary")
        if not {"algorithm", "task", "config"} <= card.keys() or "parts" not in state:
            raise KeyError("its card or its tensors are not those of a learner")
    except Exception as exc:  # a damaged file raises errors of torch, pickle, zipfile or zlib
        raise InputError(f"{path}: no checkpoint of a learner: {one_line(exc)}") from exc
    return state, card


def task_of(card: dict[str, Any], device: str = "cpu") -> Task:
    """Return the task of a checkpoint's card."""
    known = {f.name for f in fields(Setting)}
    try:
        settings = tuple(Setting(**{k: v for k, v in s.items() if k in known}) for s in card["task"]["settings"])
        return Task(settings, tuple(card["task"]["seeds"]), card["task"]["view"], card["task"]["frame"], device)
    except (KeyError, TypeError, AttributeError) as exc:
        raise InputError(f"agents: the checkpoint's card is damaged: {one_line(exc)}") from exc


def one_line(exc: BaseException) -> str:
    """Return the message's first line; the second too where the first only announces it, as torch's do."""
    lines = [line.strip() for line in str(exc).strip().splitlines()] or [type(exc).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
