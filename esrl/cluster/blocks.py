"""How the generations of an agent are divided into blocks, and put together again: what the fleet knows of an agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from esrl.algorithms.agent import Agent
from esrl.algorithms.es import ES
from esrl.algorithms.integer_es import IntegerES
from esrl.algorithms.ppo import PPO
from esrl.cluster.lanes import LaneBlocks
from esrl.cluster.playing import IntegerPairBlocks, PairBlocks
from esrl.core.types import EsrlError, PyTree


@runtime_checkable
class Retold(Protocol):
    """An agent whose generations can be told by scalars, from which a worker repeats the update."""

    def played_by(self, state: Any) -> PyTree:
        """What of a state says what is played, but for its key and generation."""

    def scalars(self, experience: Any) -> bytes:
        """Packed, what of a generation the update needs beside what a worker can draw again."""

    def follow(self, agent: Agent, state: Any, message: bytes) -> Any:
        """The state after the generation that such a message tells of."""


@runtime_checkable
class Blocks(Protocol):
    """A generation of an agent, in parts that are played by themselves.

    `state` is the agent's, or its shapes. Numbers of a block are `first .. end - 1`, `number` of them.

    Attributes:
      agent: on one device.
      option: of a run, the size of blocks. unit: what they consist of, for sentences.
      size: how many there are in a generation. together: how many stay in one block.
      needs_all: whether the update needs all blocks, and the whole state stays with the driver.
      stay: whether a block can go on in the process alone in which it was played last.
      retold: what tells a generation by scalars; None where the update needs every step.
      frozen_field: of a state, in which lies what `frozen` gives; "" where there is nothing.
    """

    agent: Agent
    option: str
    unit: str
    size: int
    together: int
    needs_all: bool
    stay: bool
    frozen_field: str

    @property
    def retold(self) -> Retold | None: ...

    @staticmethod
    def on_one_device(agent: Agent) -> Agent:
        """The agent with one device, whose generations others play."""

    @staticmethod
    def check(agent: Agent) -> None:
        """Raises an `EsrlError` for an agent that cannot be played in blocks."""

    def playable(self, state: Any) -> Any:
        """What all blocks need of a state; what they do not is None."""

    def frozen(self, state: Any) -> PyTree:
        """What of it no update changes and a worker keeps, so that it is sent once; () where there is nothing."""

    def part(self, state: Any, first: int, end: int) -> PyTree:
        """What a block needs beside, which travels with its orders."""

    def part_like(self, state: Any, number: int) -> PyTree:
        """The shapes of that."""

    def rows_like(self, state: Any, number: int) -> PyTree:
        """The shapes of what a block has played."""

    def player(self) -> Callable[[Any, PyTree, int, int], PyTree]:
        """`play(state, part, first, end) -> rows`, on the host."""

    def lost(self, state: Any, first: int, end: int) -> PyTree:
        """Rows of a block that nobody could play."""

    def episodes(self, number: int) -> int:
        """Episodes that are lost with such a block."""

    def put_together(self, state: Any, bounds: list[int], rows: dict[int, PyTree]) -> Any:
        """A generation's experience, from the rows of blocks by their places in `bounds`."""


_Kind = type[PairBlocks] | type[IntegerPairBlocks] | type[LaneBlocks]
_OF: dict[type, _Kind] = {ES: PairBlocks, IntegerES: IntegerPairBlocks, PPO: LaneBlocks}


def kind_of(agent: Agent) -> _Kind:
    """Which blocks an agent's generations have.

    Raises:
      EsrlError: an agent that plays neither pairs nor lanes.
    """
    found = _OF.get(type(agent.config))
    if found is None:
        raise EsrlError(
            f"workers play eggroll, open_es, es, eggroll_int8, ppo and eggroll_ac, and {agent.name} is none of them;"
            " leave out ray_address and the size of blocks"
        )
    return found


def blocks_of(agent: Agent) -> Blocks:
    """The blocks of an agent that is on one device."""
    return kind_of(agent)(agent)


def on_one_device(agent: Agent) -> Agent:
    """The agent with one device, in whose order every worker sums."""
    return kind_of(agent).on_one_device(agent)
