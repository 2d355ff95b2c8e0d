"""The project's speed on one accelerator, in parts that each fit into four minutes.

    pip install -e '.[cuda,torch,transformers]'
    python benchmarks/accelerator.py --part images
    python benchmarks/accelerator.py --part text --minutes 4
    python benchmarks/accelerator.py --part private --quick      # tries that it runs, on a CPU

    images   nasty steps of ResNet-18, ResNet-50 and the CNN, bfloat16, batches of 128 and 1,024,
             against PyTorch eager and compiled (nasty_step.py)
    text     the Swing step, GPT-2 to half its layers, against Hugging Face's (swing_step.py)
    private  per-example gradient sums against jax_privacy and Opacus (dp_step.py)
    loss     the chunked Swing loss against its direct form (swing_loss.py)

Every case runs its script in a separate process, so that it frees the device's memory; tables
and a JSON object for each come as they are made, and what no longer fits into --minutes is left out
by name: a run that is cut short loses nothing that was printed.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

_HERE = Path(__file__).parent
_TINY = ["--batch", "2", "--length", "32", "--layers", "2", "--width", "32", "--heads", "2"]


def cases(part: str, quick: bool) -> list[list[str]]:
    """The commands of a part, the most telling first."""
    if part == "images":
        if quick:
            return [["nasty_step.py", "--model", "cnn", "--batch", "16", "--rounds", "1"]]
        sizes = [("resnet18", 128), ("resnet18", 1024), ("cnn", 128), ("cnn", 1024)]
        sizes += [("resnet50", 128), ("resnet50", 1024)]
        fixed = ["--dtype", "bfloat16", "--several", "30"]
        return [
            ["nasty_step.py", "--model", model, "--batch", str(batch), *fixed]
            for model, batch in sizes
        ]
    if part == "text":
        small = [*_TINY, "--vocabulary", "200", "--rounds", "1"]
        return [["swing_step.py", *(small if quick else [])]]
    if part == "private":
        sizes = [["--batch", "8", "--rounds", "1"]] if quick else [["--batch", "256"]]
        return [["dp_step.py", *each] for each in sizes]
    tiny = ["--batch", "2", "--length", "32", "--vocabulary", "500", "--repeats", "1"]
    full = ["--batch", "8", "--length", "1024", "--noise", "0", "0.05", "--repeats", "10"]
    return [["swing_loss.py", *(tiny if quick else full)]]


def main():
    """Runs the cases of a part, one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", choices=["images", "text", "private", "loss"], required=True)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try that it runs")
    parser.add_argument("--minutes", type=float, default=4.0)
    options = parser.parse_args()
    end, failed = time.monotonic() + 60 * options.minutes, 0
    for script, *flags in cases(options.part, options.quick):
        left = end - time.monotonic()
        name = " ".join([script, *flags])
        if left < 5:
            print(f"left out, the time is up: {name}", flush=True)
            continue
        print(f"== {name}", flush=True)
        try:
            done = subprocess.run([sys.executable, str(_HERE / script), *flags], timeout=left)
            failed += done.returncode != 0
        except subprocess.TimeoutExpired:
            print("cut short, the time is up", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
