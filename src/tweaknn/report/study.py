"""What a page shows beyond a result's figures, once the network and images are at hand."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tweaknn.delta import LOGITS, Delta, Read
from tweaknn.inputs import Examples
from tweaknn.join.comparison import compare_logits
from tweaknn.join.dissertation import read_positions
from tweaknn.join.table import read_values
from tweaknn.measure import confusion_matrix, error_e, per_class_accuracy, shift_front, shifted_accuracy
from tweaknn.network.modes import first, placement, to_model
from tweaknn.network.outputs import collect_logits
from tweaknn.network.reader import Reader
from tweaknn.network.views import LabelView, PixelView, View
from tweaknn.report.charts import bars, histogram, loglog
from tweaknn.theta.observe import Observation, Ranked, observe

SHOWN_NEURONS, SHOWN_IMAGES, SIDE = 6, 8, 72
SHOWN_SYNAPSES = 10


def study(
    model: nn.Module,
    examples: Examples,
    targets: Sequence[int],
    *,
    delta: Delta | None = None,
    layers: str = "all",
    batch_size: int = 128,
) -> dict[str, Any]:
    """Confusion before and after, the front of the tweaked network, and the neurons: where, how strong, what they
    see.

    Algorithm 1 runs on ``examples`` for the first of ``targets``; with a ``delta`` the neurons are those it reads. ``model``
    may be a view; the delta is the network's own, ``model.model``'s. Keys as :func:`tweaknn.report.of_join.join_page` takes
    them under ``extra``.
    """
    x = examples.batch([0])[0]
    reader = Reader(model, x, layers)
    base, labels = collect_logits(model, examples.loader(batch_size))
    c = base.shape[1]
    found: dict[str, Any] = {"base_confusion": confusion_matrix(base.argmax(1), labels, c).tolist()}
    if delta is not None:
        after, _ = collect_logits(_tweaked(model, delta, x), examples.loader(batch_size))
        found["confusion"] = confusion_matrix(after.argmax(1), labels, c).tolist()
        found["front"] = front(base, after, labels, targets)
        found.update(compare_logits(base, after, labels, examples.classes).to_dict())
    if not isinstance(model, PixelView):  # Algorithm 1 counts examples, and there a picture is many
        found["neurons"] = neurons(reader, examples, base, labels, targets[0], delta, batch_size)
    return found


def _tweaked(model: nn.Module, delta: Delta, x: Any) -> nn.Module:
    """The network with its delta, seen as ``model`` is."""
    raw = model.model if isinstance(model, View) else model
    tweaked = delta.attach(raw, example_x=None if isinstance(x, torch.Tensor) else to_model(first(x, 2), *placement(raw)))
    return model.of(tweaked) if isinstance(model, View) else tweaked


def front(base: np.ndarray, after: np.ndarray, labels: np.ndarray, targets: Sequence[int]) -> list[dict[str, Any]]:
    """Points a user may drag along: from the base through more and more of the change to the tweaked network, and from
    there on with a constant on its targets, as far as that is on the Pareto front."""
    before, _ = per_class_accuracy(base.argmax(1), labels, base.shape[1])
    found = [shifted_accuracy(base + s * (after - base), labels, targets, 0.0) for s in (0.0, 0.25, 0.5, 0.75, 1.0)]
    found += [shifted_accuracy(after, labels, targets, shift) for shift in shift_front(after, labels, targets) if shift > 0]
    points = []
    for target, overall, per_class in sorted(found, key=lambda row: (row[0], -row[1])):
        accuracies = [None if np.isnan(a) else round(float(a), 5) for a in per_class]
        points.append({"target": target, "overall": overall, "E": error_e(before, per_class), "per_class": accuracies})
    return points


def neurons(
    reader: Reader,
    examples: Examples,
    logits: np.ndarray,
    labels: np.ndarray,
    target: int,
    delta: Delta | None,
    batch_size: int,
) -> dict[str, Any] | None:
    """Charts of Algorithm 1's synapses (Figs. 3.3, 3.4, 3.9) and the images that excite the neurons most."""
    name = examples.classes[target] if examples.classes else f"class {target}"
    seen = observe(reader, examples.loader(batch_size), [target])
    best = seen.best(SHOWN_SYNAPSES, [target])[target]
    values = read_positions(reader, examples, batch_size, [best], _no_bar)[0]
    layers = [layer.name for layer in reader.layers]
    charts = _of_theta(seen, name, layers)
    if len(best.layer):
        charts.append(_flips(best, values, logits, labels, target, name, layers))
    images: list[dict[str, Any]] = []
    note = (
        f"Algorithm 1 on {len(examples):,} images for {name}: a neuron is active when it corrects at least half as many "
        "mistakes as the best one does."
    )
    pooled = _strongest(reader, examples, delta, target, batch_size) if delta is not None else None
    if pooled is not None:
        chart, strips, what = pooled
        charts.insert(0, chart)
        note = what + " " + note
        images = strips
    elif examples.has_images and len(best.layer):
        for k in range(min(SHOWN_NEURONS, len(best.layer))):
            layer = reader.layers[int(best.layer[k])]
            where = np.unravel_index(int(best.index[k]), layer.shape)
            at = f"{layer.name}, {' · '.join(map(str, where))}"
            images.append(_strip(examples, values[:, k], f"{at}: corrects {int(best.count[k])} mistakes"))
    return {"note": note, "charts": charts, "images": images}


def _of_theta(seen: Observation, name: str, layers: list[str]) -> list[dict[str, Any]]:
    largest = int(seen.largest_counts()[0])
    total = np.zeros(len(layers), dtype=np.int64)
    active = np.zeros(len(layers), dtype=np.int64)
    by_count: dict[int, int] = {}
    for block, part in seen.parts():
        count = part.count[0]
        total[block.layer] += len(count)
        active[block.layer] += int((2 * count >= largest).sum()) if largest else 0
        for value, times in zip(*np.unique(count, return_counts=True)):
            by_count[int(value)] = by_count.get(int(value), 0) + int(times)
    share = active / np.maximum(total, 1)
    words = [f"{a:,} of {t:,} ({s:.2%})" for a, t, s in zip(active, total, share)]
    charts: list[dict[str, Any]] = [
        {
            "svg": bars(layers, active.tolist(), words, f"Active neurons of each layer for {name}"),
            "caption": f"Where the {int(active.sum()):,} active neurons for {name} sit (Fig. 3.9); layers in execution order.",
        }
    ]
    points = [(float(k), float(v)) for k, v in sorted(by_count.items()) if k > 0]
    charts.append(
        {
            "svg": loglog(
                points, f"How many neurons have which count for {name}", "count (mistakes corrected)", "neurons"
            ),
            "caption": f"Distribution of count (Fig. 3.4): {by_count.get(0, 0):,} neurons correct none, the best corrects {largest}.",
        }
    )
    return charts


def _flips(
    best: Ranked,
    values: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    target: int,
    name: str,
    layers: list[str],
) -> dict[str, Any]:
    """E_w and E_c (Fig. 3.3) of each of the best synapses; the reader chooses which one to look at."""
    predicted, top = logits.argmax(1), logits.max(1)
    choices = []
    for k in range(len(best.layer)):
        v = values[:, k]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (top - logits[:, target]) / v
        wrong = (labels == target) & (predicted != target) & (v != 0)
        correct = (labels != target) & (predicted == labels) & (v != 0)
        synapse = f"{layers[int(best.layer[k])]} neuron {int(best.index[k])} to {name}"
        series = [("E_c", ratio[correct], "bar soft"), ("E_w", ratio[wrong], "bar warm")]
        drawn = histogram(
            series, f"E_w and E_c of {synapse}", "weight that flips the example", abs(float(best.weight[k])), clip=0.9
        )
        caption = f"Weights up to the threshold correct {int(best.count[k])} of the target's mistakes (E_w) and harm no other class's"
        choices.append({"name": f"{k + 1}. {synapse}", "svg": drawn, "caption": f"{caption} correct image (E_c)."})
    return {
        "label": "Synapse",
        "choices": choices,
        "caption": f"The {len(choices)} synapses that correct most mistakes, one at a time (Fig. 3.3)."
        if len(choices) > 1
        else "The best synapse (Fig. 3.3).",
    }


def _strongest(
    reader: Reader, examples: Examples, delta: Delta, target: int, batch_size: int
) -> tuple[dict[str, str], list[dict[str, Any]], str] | None:
    """Where a delta has its effect on the target, and what excites its strongest neurons.

    A neuron's effect is the mean slope of the target's logit along it (its weight, where the delta is linear) times the
    neuron's spread over the examples. None for a delta that reads no hidden neuron or does not reach the target.
    """
    reads: list[Read] = []
    values: list[np.ndarray] = []
    effects: list[np.ndarray] = []
    sign = 1.0
    view = reader.model
    if isinstance(view, LabelView):  # the delta is the network's own, see tweaknn.delta.views
        target, sign = view.label, 1.0 if target == 1 else -1.0
    for term in delta.terms:
        columns = term.head.columns.tolist()
        if target not in columns or any(read.layer == LOGITS for read in term.reads):
            continue
        mine = [replace(read, layer=f"model.{read.layer}") if isinstance(view, View) else read for read in term.reads]
        x = torch.from_numpy(read_values(reader, examples.loader(batch_size), mine)).requires_grad_(True)
        with torch.enable_grad():
            term.head(x)[:, columns.index(target)].sum().backward()
        assert x.grad is not None
        reads += mine
        values.append(x.detach().numpy())
        effects.append((sign * x.grad.mean(0) * x.detach().std(0)).numpy())
    if not effects or not any(np.any(e) for e in effects):
        return None
    effect, seen = np.concatenate(effects), np.concatenate(values, axis=1)
    owner = np.concatenate([np.full(int(read.index.numel()), r) for r, read in enumerate(reads)])
    within = np.concatenate([read.index.numpy() for read in reads])
    order = [layer.name for layer in reader.layers]
    size = dict.fromkeys(order, 0.0)
    for r, read in enumerate(reads):
        size[read.layer] += float(np.abs(effect[owner == r]).sum())
    names = [name for name in order if size[name] > 0]
    whole = sum(size.values())
    chart = {
        "svg": bars(
            names, [size[n] for n in names], [f"{size[n] / whole:.1%}" for n in names], "Effect of the change by layer"
        ),
        "caption": "How much of the Δnn's effect on the target's logit comes from each layer (|slope| times the neuron's spread).",
    }
    strips: list[dict[str, Any]] = []
    shown = set()
    for k in np.argsort(-np.abs(effect)) if examples.has_images else ():
        read = reads[int(owner[k])]
        place = read.layer, read.reduction, int(within[k])
        if place in shown:  # another term of the same delta reads it too
            continue
        if len(strips) == SHOWN_NEURONS:
            break
        shown.add(place)
        speaks = "speaks for" if effect[k] > 0 else "speaks against"
        what = "channel" if read.reduction in ("mean", "max") and len(read.shape) > 1 else "neuron"
        how = f" ({read.reduction})" if read.reduction != "position" and len(read.shape) > 1 else ""
        caption = f"{read.layer}, {what} {int(within[k])}{how}: {speaks} the target ({effect[k]:+.2f} a standard deviation)"
        strips.append(_strip(examples, seen[:, k], caption))
    return chart, strips, f"The Δnn reads {int((effect != 0).sum()):,} numbers from hidden layers for this target."


def _strip(examples: Examples, values: np.ndarray, caption: str) -> dict[str, Any]:
    """The images on which a neuron is largest, as inline pictures with their class as the text."""
    uris = []
    for i in np.argsort(-values, kind="stable")[:SHOWN_IMAGES]:
        label = int(examples.labels[i])
        name = examples.classes[label] if examples.classes else str(label)
        src, w, h = data_uri(examples.image(int(i)))
        uris.append({"src": src, "w": w, "h": h, "alt": f"{name} (value {values[i]:.2f})"})
    return {"uris": uris, "caption": caption}


def data_uri(pixels: np.ndarray, side: int = SIDE) -> tuple[str, int, int]:
    """uint8 ``(h, w, 1 or 3)`` as an inline picture no larger than needed, and the size it is shown at."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if max(image.size) > 2 * side:
        image.thumbnail((2 * side, 2 * side))
    buffer = io.BytesIO()
    large = image.size[0] * image.size[1] > 4096
    image.save(buffer, "JPEG" if large else "PNG", **({"quality": 82} if large else {"optimize": True}))
    kind = "jpeg" if large else "png"
    scale = side / max(image.size)
    shown = max(1, round(image.size[0] * scale)), max(1, round(image.size[1] * scale))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", *shown


class _no_bar:
    """A progress bar that shows nothing."""

    def __init__(self, what: str, total: int) -> None:
        del what, total

    def __enter__(self) -> Any:
        return lambda done: None

    def __exit__(self, *ended: object) -> None:
        return None


def subset(examples: Examples, most: int, seed: int = 0) -> Examples:
    """At most about ``most`` examples, each class in its share."""
    if len(examples) <= most:
        return examples
    order = np.random.default_rng(seed).permutation(len(examples))
    labels = examples.labels[order]
    share = most / len(examples)
    parts = [order[labels == j][: max(1, round(share * int((labels == j).sum())))] for j in np.unique(labels)]
    return examples.subset(np.sort(np.concatenate(parts)))
