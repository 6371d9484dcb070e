"""Deltas on the Hugging Face Hub: a file and a card that says who gains and who pays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tweaknn.delta.value import Delta
from tweaknn.errors import DeltaError

FILE = "delta.safetensors"


def save_pretrained(delta: Delta, folder: str | os.PathLike[str], *, base_model: str | None = None) -> Path:
    """Write ``delta.safetensors`` and ``README.md`` (the model card) into ``folder``.

    Args:
        delta: what to write.
        folder: is made when missing.
        base_model: the base's name on the Hub, for the card.

    Raises:
        DeltaError: the folder cannot be written to.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        delta.save(str(target / FILE))
        (target / "README.md").write_text(card(delta, base_model), encoding="utf-8")
    except OSError as error:
        raise DeltaError(f"Cannot write {target}: {error.strerror or error}.") from None
    return target


def from_pretrained(name: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None) -> Delta:
    """A delta from a folder, or from the Hub (``user/name``). Raises DeltaError when there is none."""
    if Path(name).is_dir():
        return Delta.load(str(Path(name) / FILE))
    hub = _hub()
    try:
        path = hub.hf_hub_download(str(name), FILE, revision=revision, token=token)
    except Exception as error:  # network, rights, names: the hub has a class for each
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DeltaError(f"No delta could be had from {name}: {reason}") from None
    return Delta.load(path)


def push_to_hub(
    delta: Delta, repo_id: str, *, base_model: str | None = None, private: bool = False, token: str | None = None
) -> str:
    """Upload a delta and its card; gives the commit's address. Raises DeltaError when it cannot."""
    import tempfile

    hub = _hub()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(delta, folder, base_model=base_model)
        try:
            api = hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Δnn by tweaknn"))
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DeltaError(f"The delta could not be uploaded to {repo_id}: {reason}") from None


def card(delta: Delta, base_model: str | None = None) -> str:
    """The model card, in Markdown: what it changes, the validation figures, who pays."""
    front = ["---", "library_name: tweaknn", "tags: [tweaknn, delta]"]
    if base_model:
        front.append(f"base_model: {base_model}")
    names = [delta.classes[j] if delta.classes else f"class {j}" for j in delta.touched]
    lines = [
        *front,
        "---",
        "",
        "# Δnn",
        "",
        f"A change of {delta.parameters} numbers to a classifier with fingerprint `{delta.base}`, whose own weights it "
        "leaves alone.",
        "",
        f"- method: {delta.kind}",
        f"- reads {sum(t.neurons for t in delta.terms)} neurons of {len(delta.layers)} layers",
        f"- changes the logits of: {', '.join(names) or 'none'}",
        "",
        "```python",
        "from tweaknn import Delta",
        "",
        'tweaked = Delta.from_pretrained("REPOSITORY").attach(model)',
        "```",
        "",
        "## Figures on validation data",
        "",
        *_figures(delta),
    ]
    return "\n".join(lines) + "\n"


def _figures(delta: Delta) -> list[str]:
    meta: dict[str, Any] = delta.meta
    chosen = (meta.get("candidates") or {}).get(meta.get("chosen") or "", {})
    base, after = meta.get("base", {}).get("per_class"), chosen.get("per_class")
    if not isinstance(base, dict) or not isinstance(after, dict):
        return ["The file carries none; measure it on your own data before you use it."]
    lines = [str(meta.get("sentence", "")), "", "| class | base | with Δnn | |", "|---|---:|---:|---|"]
    for name, before in base.items():
        now = after.get(name)
        if before is None or now is None:
            lines.append(f"| {name} | – | – | no examples |")
            continue
        verdict = "gains" if now > before else "**pays**" if now < before else ""
        lines.append(f"| {name} | {before:.1%} | {now:.1%} | {verdict} |")
    rivals = [
        f"{name}: targets {row['target']:.1%}, overall {row['overall']:.1%}"
        for name, row in meta["candidates"].items()
        if isinstance(row.get("target"), float)
    ]
    warnings = [f"- {warning}" for warning in meta.get("warnings", [])]
    return [
        *lines,
        "",
        "Every candidate, controls included: " + "; ".join(rivals) + ".",
        *(["", "Warnings:", "", *warnings] if warnings else []),
    ]


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise DeltaError("The Hub needs one more package: pip install 'tweaknn[hub]'.") from None
    return huggingface_hub
