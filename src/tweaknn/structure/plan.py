"""What can be gated in a network: operations, the arrays cut with a unit, and residual branches, as plain data.

A :class:`Plan` knows module paths and integer maps only, so that it applies to any copy of the network it was
made for (another dtype, another device, a rank of a distributed job).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

CONSTANT = -1
"""In a map: this index belongs to no gate and always stays."""


@dataclass
class Slot:
    """One dimension of one parameter or buffer, and the gate of every index along it.

    ``map`` has shape ``(size of that dimension,)`` and holds gate numbers or :data:`CONSTANT`. ``reads`` marks the
    dimension through which an operation reads its inputs: there the gate acts while training (section 1).
    """

    module: str
    name: str
    dim: int
    map: np.ndarray
    reads: bool = False

    @property
    def key(self) -> str:
        return f"{self.module}.{self.name}" if self.module else self.name


@dataclass
class Op:
    """One operation's cost: ``flops`` and ``params`` per pair of live in- and out-unit (per unit if ``in_map`` is None)."""

    module: str
    out_map: np.ndarray
    in_map: np.ndarray | None
    flops: float
    params: float
    blocks: tuple[int, ...] = ()
    kind: str = "linear"


@dataclass(frozen=True)
class Block:
    """A residual branch: ``owner`` adds the output of its child ``last`` to a shortcut (section 1).

    ``inside`` are the children of ``owner`` that only this branch uses; without the branch they go too.
    """

    owner: str
    last: str
    inside: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.owner}.{self.last}" if self.owner else self.last

    def holds(self, module: str) -> bool:
        """Whether ``module`` (a path) lies in this branch."""
        for child in self.inside:
            path = f"{self.owner}.{child}" if self.owner else child
            if module == path or module.startswith(path + "."):
                return True
        return False


@dataclass(frozen=True)
class Attribute:
    """An integer the forward pass reads (``num_heads``) and that follows the number of live gates in ``gates``."""

    module: str
    name: str
    gates: tuple[int, ...]
    per_gate: int


@dataclass
class Plan:
    """Gates ``0 .. n_units-1`` are units, ``n_units .. n_units+len(blocks)-1`` are branches."""

    n_units: int
    ops: list[Op]
    slots: list[Slot]
    blocks: list[Block]
    attributes: list[Attribute] = field(default_factory=list)
    unit_names: list[str] = field(default_factory=list)
    ungated: dict[str, str] = field(default_factory=dict)
    must_live: list[np.ndarray] = field(default_factory=list)
    """Sets of unit gates of which at least one must stay: one for every layer."""
    branches_go: bool = True
    """Whether a layer that would lose its last unit may take its branch with it."""

    @property
    def n_gates(self) -> int:
        """Units' gates first, then one a branch."""
        return self.n_units + len(self.blocks)

    def families(self) -> np.ndarray:
        """Family of every unit gate, shape ``(n_units,)``: gates that index one array together share a family."""
        parent = np.arange(self.n_units)

        def find(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for slot in self.slots:
            if slot.reads:  # consumers of a concatenation read several families
                continue
            gates = np.unique(slot.map[slot.map >= 0])
            for g in gates[1:]:
                a, b = find(gates[0]), find(int(g))
                parent[max(a, b)] = min(a, b)
        return np.array([find(i) for i in range(self.n_units)], dtype=np.int64)

    def without(self, gates: np.ndarray, reason: str) -> Plan:
        """The plan with the unit gates marked in ``gates`` (bool, ``(n_units,)``) removed and listed as ungated."""
        new = np.full(self.n_units + 1, CONSTANT, dtype=np.int64)
        new[:-1][~gates] = np.arange(int((~gates).sum()))

        def remap(m: np.ndarray) -> np.ndarray:
            return new[m]  # CONSTANT (-1) picks the last entry, which is CONSTANT

        ungated = dict(self.ungated)
        for i in np.flatnonzero(gates):
            ungated.setdefault(self.unit_names[i].rsplit(":", 1)[0], reason)
        shift = int(gates.sum())
        ops = [
            Op(o.module, remap(o.out_map), None if o.in_map is None else remap(o.in_map), o.flops, o.params,
               tuple(b - shift for b in o.blocks), o.kind)
            for o in self.ops
        ]  # fmt: skip
        slots = [Slot(s.module, s.name, s.dim, remap(s.map), s.reads) for s in self.slots]
        attributes = [
            Attribute(a.module, a.name, tuple(int(new[g]) for g in a.gates), a.per_gate)
            for a in self.attributes
            if not gates[list(a.gates)].any()
        ]
        names = [n for i, n in enumerate(self.unit_names) if not gates[i]]
        must = [new[m[~gates[m]]] for m in self.must_live if not gates[m].any()]
        return Plan(int((~gates).sum()), ops, slots, list(self.blocks), attributes, names, ungated, must)

    def without_blocks(self, bad: set[int], reason: str) -> Plan:
        """The plan with the blocks numbered in ``bad`` (0-based among blocks) removed and listed."""
        keep = [i for i in range(len(self.blocks)) if i not in bad]
        number = {self.n_units + old: self.n_units + new for new, old in enumerate(keep)}
        ungated = dict(self.ungated) | {self.blocks[i].name: reason for i in sorted(bad)}
        ops = [
            Op(o.module, o.out_map, o.in_map, o.flops, o.params,
               tuple(number[b] for b in o.blocks if b in number), o.kind)
            for o in self.ops
        ]  # fmt: skip
        blocks = [self.blocks[i] for i in keep]
        return Plan(
            self.n_units, ops, self.slots, blocks, self.attributes, self.unit_names, ungated, self.must_live
        )
