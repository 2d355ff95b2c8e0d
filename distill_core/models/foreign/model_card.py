"""The model card of a directory for Hugging Face: README.md with front matter."""

from collections.abc import Mapping
from typing import Any

from distill_core.models.foreign.weights_file import RefusedError
from distill_core.runtime import strict_json

_USE = """\
from transformers import AutoModelForCausalLM, {tokenizer}

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = {tokenizer}.from_pretrained(".")"""


def readme(
    card: Mapping[str, Any],
    *,
    results: Mapping[str, Any] | None = None,
    command: str | None = None,
    tokenizer: str = "AutoTokenizer",
) -> str:
    """The text of README.md.

    Args:
      card: of `distill_core.release`: network, inputs, outputs, and with a ledger its `privacy`.
      results: what was measured, as `swingdistill.evaluate --out` writes it.
      command: how the network was trained.
      tokenizer: the class of `transformers` that reads the tokenizer as it is.

    Raises:
      RefusedError: `results` are something else.
    """
    text = "[B, L" in card["inputs"]
    front = {
        "library_name": "transformers" if text else "pytorch",
        "pipeline_tag": "text-generation" if text else "image-classification",
        "tags": ["knowledge-distillation", "privacy"],
    }
    lines = ["---", *(f"{name}: {_yaml(value)}" for name, value in front.items()), "---", ""]
    lines += [f"# A {card['network']['model']} of {card['parameters']:,} parameters", ""]
    lines += [f"- Inputs: {card['inputs']}", f"- Outputs: {card['outputs']}"]
    if "vocabulary" in card:
        lines.append(f"- Vocabulary: {card['vocabulary']}")
    if text:
        lines += ["", "## Use", "", "```python", _USE.format(tokenizer=tokenizer), "```"]
    lines += ["", "## Privacy", "", *_privacy(card.get("privacy"))]
    if results is not None:
        try:
            lines += ["", "## Measured", "", *_measured(results)]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise RefusedError("is not what swingdistill.evaluate --out writes") from None
    if command:
        lines += ["", "## Training", "", "```sh", command, "```"]
    network = strict_json.encode(card["network"], indent=1)
    lines += ["", "## Network", "", "```json", network, "```", ""]
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    return strict_json.encode(value) if isinstance(value, list) else str(value)


def _privacy(claim: Mapping[str, Any] | None) -> list[str]:
    if claim is None:
        return ["No differential privacy is claimed: no ledger entry covers the training data."]
    if claim["epsilon"] is None:
        return [f"No ε is claimed: {claim['why']}."]
    names = ("privacy_unit", "adjacency", "epsilon", "delta", "replace_one_epsilon")
    names += ("record_epsilon", "total_epsilon")
    rows = [f"| {name} | {_number(claim[name])} |" for name in names if name in claim]
    table = ["| what | value |", "|---|---|", *rows, "", "It holds under these assumptions:", ""]
    return table + [f"- {each}" for each in claim["assumptions"]]


def _measured(results: Mapping[str, Any]) -> list[str]:
    kinds = [name for name in results if name.endswith("perplexity") and results[name] is not None]
    lines = ["| on the test text | value |", "|---|---|"]
    lines += [f"| {name} | {float(results[name]):.4g} |" for name in kinds]
    if (recall := results.get("rules_recall")) is not None:
        told = f"{recall:.3f}"
        lines += ["", f"Recall of the recognisers on the tokens of its private spans: {told}."]
    if exposure := results.get("exposure"):
        among, of = results["exposure_among"], results["exposure_candidates"]
        lines += ["", f"Exposure of planted secrets, ranked among {among:,} of {of:,} candidates:"]
        lines += ["", "| planted | mean, bits | worst | 95% bounds of the worst | p | verdict |"]
        lines += ["|---|---|---|---|---|---|"]
        for level, bits in exposure.items():
            low, high = max(results["exposure_bounds"][level])
            told = [sum(bits) / len(bits), max(bits), f"{low:.2f} to {high:.2f}"]
            told += [float(results["exposure_p"][level]), results["exposure_verdict"][level]]
            lines.append(f"| {level} times | {' | '.join(map(_number, told))} |")
    for name in ("extraction", "membership"):
        if results.get(name):
            told = strict_json.encode(results[name], indent=1)
            lines += ["", f"{name.capitalize()}:", "", "```json", told, "```"]
    if missing := results.get("not_measured"):
        lines += ["", f"Not measured: {'; '.join(missing)}."]
    return lines


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
