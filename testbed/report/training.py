"""The enhancer's training in the summary of a run or a replay, as rows for pages and terminals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.report.pieces import figure, number


def rows(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return rows (name, text) of the summary's field `training`."""
    out = [("attempts", f"{told['blocks']}, of which {sum(told['failures'].values())} failed")]
    out += [("failed", f"{n} × {why}") for why, n in told["failures"].items()]
    out.append(
        (
            "public",
            f"Bob’s CSI of {number(told['rounds'])} rounds, which are not used for keys; "
            f"{told['public_bytes'] / 1e3:,.0f} kB "
            f"with the model and the protocol's messages; {number(told['guard_rounds'])} "
            "further rounds were discarded as guard",
        )
    )
    card = told.get("card") or {}
    if not card.get("enhance"):
        return out if told["model"] is None else [*out, ("model", told["model"])]
    options = ", ".join(f"{k} = {v}" for k, v in (card.get("parameters") or {}).items())
    out.insert(0, ("scheme", f"{card['enhance']} ({options})"))
    data, history, recipe = (card.get(k) or {} for k in ("data", "history", "recipe"))
    out.append(
        ("trained on", f"{number(data.get('train'))} pairs, validated on {number(data.get('validate'))} later ones")
    )
    if "best_epoch" in history:
        epochs = f"epoch {history['best_epoch']} of {history['epochs']} was best; at most {recipe.get('epochs')}"
        out.append(("epochs", epochs))
        first, best = (figure(history[f"validation_{which}"]) for which in ("first", "best"))
        out.append(("loss on the later pairs", f"{best} after training, {first} before"))
    before, after = figure(told["nmse_before"]), figure(told["nmse_after"])
    out.append(
        (
            "power of the ends’ difference over that of the channel",
            f"{after} on the later pairs, {before} without the model",
        )
    )
    digests = ", ".join(f"{end} {data[key][:16]}…" for end, key in _DIGESTS if data.get(key))
    out.append(("SHA-256 of the CSI", digests))
    where = f"; each node’s part: {told['file']} in its own folder" if told.get("file") else "; not stored"
    return [*out, ("model", f"{told['model']}{where}")]


_DIGESTS = (("Alice’s", "alice_sha256"), ("Bob’s", "bob_sha256"))
