"""From a network and an example to a :class:`Plan`, proven: every cut it allows is tried before it is offered."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError
from .blocks import find_blocks
from .gating import gated
from .plan import CONSTANT, Attribute, Block, Op, Plan, Slot
from .provenance import Watcher, tensors_in
from .surgery import cut

HEAD_NAMES = ("num_heads", "n_heads", "heads", "nhead", "n_head", "num_attention_heads")
WIDTH_NAMES = ("attn_dim", "inner_dim", "all_head_size")
PROOF = 1e-10


def as_inputs(example: Any) -> tuple[Any, ...]:
    """The positional arguments of the network's forward pass."""
    return tuple(example) if isinstance(example, (tuple, list)) else (example,)


def run(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """All floating-point tensors the network returns for ``inputs``, in evaluation mode, without gradients."""
    states = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return [t for t in tensors_in(_plain(model(*inputs))) if t.is_floating_point()]
    finally:
        for m, mode in states.items():
            m.training = mode


def _plain(out: Any) -> Any:
    return dict(out) if hasattr(out, "keys") else out


def analyse(model: nn.Module, example: Any, *, prove: bool = True, seed: int = 0) -> Plan:
    """Find the gates of ``model`` by running it once on ``example`` (a batch, or a tuple of arguments).

    With ``prove`` every family of units and every branch has been cut at random in a float64 copy, and the cut copy's
    outputs agreed with the gated one's to 1e-10 (relative): what fails is left ungated and listed in
    ``plan.ungated``.

    Raises:
        ModelError: the network does not run on ``example``, or returns no tensor.
    """
    inputs = as_inputs(example)
    if any("_tweaknn_gates" in m.__dict__ for m in model.modules()):
        raise ModelError(f"{type(model).__name__} is gated already; end that run with compact() first")
    try:
        reference = copy.deepcopy(model).cpu().eval()
    except RuntimeError as error:  # torch.nn.utils.weight_norm of old
        raise ModelError(f"{type(model).__name__} cannot be copied: {str(error).splitlines()[0]}") from error
    cpu = tuple(x.cpu() if isinstance(x, Tensor) else x for x in inputs)
    watcher = Watcher(reference)
    first = next((x for x in cpu if isinstance(x, Tensor)), None)
    watcher.batch = max(1, int(first.shape[0])) if first is not None and first.dim() else 1
    try:
        with torch.no_grad(), watcher:
            out = list(tensors_in(_plain(reference(*cpu))))
    except Exception as error:
        raise ModelError(f"{type(model).__name__} does not run on the example input: {error}") from error
    if not out:
        raise ModelError(f"{type(model).__name__} returns no tensor on the example input, so nothing can be gated")
    for t in out:
        watcher.freeze(watcher.of(t).numpy(), "an output of the network")
    _freeze_training_only(watcher, reference, cpu)
    blocks, refused = find_blocks(reference)
    plan = _plan(watcher, reference, blocks)
    plan.ungated |= refused
    return _proven(reference, plan, cpu, seed) if prove and plan.n_gates else plan


def _freeze_training_only(w: Watcher, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Units that layers read which run in training mode only (auxiliary heads) stay: a cut, proven in evaluation mode,
    would leave those layers with their old width."""
    known = {s.key for s in w.slots}
    if all(name in known for name, _ in model.named_parameters()):
        return
    modes = {m: m.training for m in model.modules()}
    state = copy.deepcopy(model.state_dict())
    for m in modes:  # one example is enough for everything but statistics
        m.training = not isinstance(m, nn.modules.batchnorm._BatchNorm)
    again = Watcher(model)
    again.batch = w.batch
    try:
        with torch.no_grad(), again, torch.random.fork_rng(devices=[]):
            model(*inputs)
    except Exception:
        return  # it does not train on such inputs, whatever is gated
    finally:
        for m, mode in modes.items():
            m.training = mode
        model.load_state_dict(state)
    found = {name: u for u, name in enumerate(w.names) if u}
    roots = np.array([again.root(u) for u in range(len(again.parent))])
    reasons = dict(again.frozen)
    for slot in again.slots:
        if slot.key not in known:
            for root in np.unique(roots[slot.map[slot.map > 0]]):
                reasons.setdefault(int(root), f"read by {slot.module}, which runs in training only")
    for root, reason in reasons.items():
        w.freeze([found[again.names[u]] for u in np.flatnonzero(roots == root) if again.names[u] in found], reason)


def _plan(w: Watcher, model: nn.Module, blocks: list[Block]) -> Plan:
    params = dict(model.named_parameters())
    for slot in w.slots:  # a network frozen on purpose stays as it is
        p = params.get(slot.key)
        if p is not None and not p.requires_grad:
            w.freeze(slot.map, "its parameters are frozen (requires_grad is False)")
    n = len(w.parent)
    roots = np.array([w.root(u) for u in range(n)], dtype=np.int64)
    stay = np.array([u == 0 or int(r) in w.frozen for u, r in enumerate(roots)])
    used = np.zeros(n, dtype=bool)
    for slot in w.slots:
        used[roots[slot.map]] = True
    live = np.unique(roots[~stay & used[roots]])
    number = np.full(n, CONSTANT, dtype=np.int64)
    for g, r in enumerate(live):
        number[r] = g
    gate = np.where(stay, CONSTANT, number[roots])
    ungated: dict[str, str] = {}
    for u in range(1, n):
        if roots[u] == u and u in w.frozen:
            ungated.setdefault(w.names[u].rsplit(":", 1)[0], w.frozen[u])
    inside = lambda path: tuple(len(live) + i for i, b in enumerate(blocks) if b.holds(path))  # noqa: E731
    ops = [
        Op(o.module, gate[o.out_map], None if o.in_map is None else gate[o.in_map], o.flops, o.params,
           inside(o.module), o.kind)
        for o in w.ops
    ]  # fmt: skip
    slots = [Slot(s.module, s.name, s.dim, gate[s.map], s.reads) for s in w.slots]
    slots = [s for s in slots if (s.map >= 0).any()]
    must: list[np.ndarray] = []
    for units in w.made.values():
        own = gate[units] if len(units) else units
        if len(own) and (own >= 0).all() and not any(np.array_equal(np.unique(own), m) for m in must):
            must.append(np.unique(own))
    names = [w.names[r] for r in live]
    plan = Plan(len(live), ops, slots, blocks, [], names, ungated, must)
    plan.attributes = _attributes(w, model, gate, plan)
    return plan


def _attributes(w: Watcher, model: nn.Module, gate: np.ndarray, plan: Plan) -> list[Attribute]:
    """Integers named like a count of heads, in the module that holds the projections of gated heads."""
    found: list[Attribute] = []
    for slot in plan.slots:
        units = np.unique(slot.map[slot.map >= 0])
        if (slot.map < 0).any() or not slot.reads or "." not in slot.module:
            continue
        per = len(slot.map) // len(units)
        if per * len(units) != len(slot.map) or per < 2 or not np.array_equal(slot.map, np.repeat(slot.map[::per], per)):
            continue
        owner = slot.module.rsplit(".", 1)[0]
        module = model.get_submodule(owner)
        for names, value, each in ((HEAD_NAMES, len(units), 1), (WIDTH_NAMES, len(slot.map), per)):
            for name in names:
                if module.__dict__.get(name) == value and type(module.__dict__[name]) is int:
                    found.append(Attribute(owner, name, tuple(int(g) for g in slot.map[::per]), each))
    return found


def _proven(model: nn.Module, plan: Plan, inputs: tuple[Any, ...], seed: int) -> Plan:
    """Keep what stands the test; on failure look for the guilty families and branches, those of one role at a time."""
    double = copy.deepcopy(model).double()
    data = tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
    rng = np.random.default_rng(seed)
    everything = np.ones(plan.n_gates, dtype=bool)
    units = np.arange(plan.n_gates) < plan.n_units
    families = plan.families()
    branches = _branches(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # what lies in a branch that is out is not tested, so units are cut with every branch in place, too
        trials = [everything, units, *(np.any(group, axis=0) for group in branches)]
        if all(_agrees(double, plan, data, rng, families, chosen) is None for chosen in trials if chosen.any()):
            return plan
        bad = np.zeros(plan.n_gates, dtype=bool)
        why = "cutting it does not give the gated network"
        for group in [*_roles(plan, families), *branches]:
            if len(group) > 1 and _agrees(double, plan, data, rng, families, np.any(group, axis=0)) is None:
                continue
            for chosen in group:
                wrong = _agrees(double, plan, data, rng, families, chosen)
                if wrong is not None:
                    bad |= chosen
                    why = wrong if chosen[: plan.n_units].any() else why
        bad_blocks = {int(b) for b in np.flatnonzero(bad[plan.n_units :])}
        plan = plan.without(bad[: plan.n_units], why)
        if bad_blocks:
            plan = plan.without_blocks(bad_blocks, "taking it out does not give the gated network")
        everything = np.ones(plan.n_gates, dtype=bool)
        if plan.n_gates and (wrong := _agrees(double, plan, data, rng, plan.families(), everything)):
            plan = plan.without(np.ones(plan.n_units, dtype=bool), wrong)
            plan = plan.without_blocks(set(range(len(plan.blocks))), wrong)
    return plan


def _roles(plan: Plan, families: np.ndarray) -> list[list[np.ndarray]]:
    """Families as masks over the gates, together those that index the same arrays of modules whose paths differ in
    numbers only: blocks repeat, and what can be cut in one can be cut in the next."""
    roles: dict[int, set[tuple[Any, ...]]] = {int(family): set() for family in np.unique(families)}
    for slot in plan.slots:
        role = (re.sub(r"\d+", "#", slot.module), slot.name, slot.dim, slot.reads)
        for family in np.unique(families[slot.map[slot.map >= 0]]):
            roles[int(family)].add(role)
    groups: dict[frozenset[Any], list[np.ndarray]] = {}
    for family, places in roles.items():
        chosen = np.zeros(plan.n_gates, dtype=bool)
        chosen[: plan.n_units] = families == family
        groups.setdefault(frozenset(places), []).append(chosen)
    return list(groups.values())


def _branches(plan: Plan) -> list[list[np.ndarray]]:
    """Branches as masks over the gates, together those in equally many others: one in another goes with it untested."""
    groups: dict[int, list[np.ndarray]] = {}
    for b, block in enumerate(plan.blocks):
        depth = sum(other.holds(block.name) for other in plan.blocks if other is not block)
        groups.setdefault(depth, []).append(np.arange(plan.n_gates) == plan.n_units + b)
    return list(groups.values())


def _drawn(plan: Plan, rng: np.random.Generator, families: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Gates at random among ``chosen``, such that something is cut in every family: a test that cuts nothing passes."""
    alive = np.ones(plan.n_gates, dtype=bool)
    alive[chosen] = rng.random(int(chosen.sum())) < 0.6
    if not chosen[: plan.n_units].any():
        alive[chosen] = False
    for family in np.unique(families[chosen[: plan.n_units]]):
        own = np.flatnonzero(families == family)
        if len(own) > 1 and alive[own].all() == alive[own].any():
            alive[rng.choice(own)] ^= True  # one stays, too: with none left the branch around would go
    return keep_working(plan, alive)


def _copied(model: nn.Module) -> nn.Module:
    """A copy to be cut; its parameters lie in the memory of the old ones until then."""
    memo: dict[int, Any] = {}
    for old in (*model.parameters(), *model.buffers()):
        if type(old) is nn.Parameter:
            memo[id(old)] = nn.Parameter(old.detach(), requires_grad=old.requires_grad)
        elif type(old) is Tensor:
            memo[id(old)] = old.detach()
    return copy.deepcopy(model, memo)


def _agrees(
    model: nn.Module, plan: Plan, inputs: tuple[Any, ...], rng: np.random.Generator, families: np.ndarray,
    chosen: np.ndarray,
) -> str | None:  # fmt: skip
    """None if the network cut at random among ``chosen`` gates equals the gated one; else what went wrong."""
    alive = _drawn(plan, rng, families, chosen)
    try:
        with gated(model, plan, torch.from_numpy(alive.astype(np.float64))):
            want = run(model, inputs)
    except Exception as error:
        return f"it cannot be gated ({error})"
    small = _copied(model)
    try:
        small, _ = cut(small, plan, alive)
        got = run(small, inputs)
    except Exception as error:
        return f"its forward pass fixes the number of channels ({str(error).splitlines()[0][:120]})"
    for x, y in zip(want, got):
        if x.shape != y.shape:
            return "cutting it changes the shape of the output"
        scale = float(x.abs().max()) or 1.0
        if not bool(((x - y).abs() <= PROOF * scale).all()):
            return "cutting it does not give the gated network"
    return None


def keep_working(
    plan: Plan, alive: np.ndarray, possible: np.ndarray | None = None, score: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """The smallest working network above ``alive`` (bool, ``(n_gates,)``): no layer without a unit.

    A layer that lost its last unit inside a gated branch takes the branch with it; elsewhere the unit of the highest
    ``score`` among the ``possible`` ones comes back.
    """
    alive = alive.copy()
    rank = np.zeros(len(alive)) if score is None else score
    if possible is not None:
        rank = np.where(possible, rank, -np.inf)
    for units in plan.must_live:
        if alive[units].any():
            continue
        blocks = {b for o in plan.ops if len(o.out_map) and np.isin(o.out_map, units).any() for b in o.blocks}
        if blocks and plan.branches_go:
            alive[list(blocks)] = False
        alive[units[np.argmax(rank[units])]] = True
    return alive if possible is None else alive & possible
