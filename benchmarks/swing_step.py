"""Our Swing step against the same distillation in PyTorch with Hugging Face's GPT-2.

    pip install -e '.[torch,transformers]'
    python benchmarks/swing_step.py
    python benchmarks/swing_step.py --batch 2 --length 64 --layers 2 --width 64 --vocabulary 500

GPT-2 as the teacher (124 million parameters by default) and one of half its layers as the student,
both random, with the same weights on both sides; AdamW; bfloat16 arithmetic, float32 parameters.
Theirs runs under autocast and takes the usual loss, α KL + (1 − α) CE of whole logits, eagerly and
compiled. Ours takes the same loss in chunks ("kd"), and the Swing loss with 5% of the tokens
private ("swing"). The first losses of ours and theirs are compared, so that the same work is timed.
Sides alternate; medians. Memory is that of networks, optimiser and step: XLA's arguments and
temporary, and the most that PyTorch had allocated.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# Two frameworks share a GPU: before JAX starts, which else takes most of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import steps
import torch
import transformers
from flax import traverse_util
from torch.nn import functional

from distill_core.models.flops import count_flops
from distill_core.models.foreign import gpt2
from distill_core.runtime import backend, peaks

ALPHA = 0.7


def their_network(options: argparse.Namespace, layers: int, device: str) -> Any:
    """GPT-2 as Hugging Face builds it, without dropout."""
    about = transformers.GPT2Config(
        vocab_size=options.vocabulary,
        n_positions=options.length,
        n_embd=options.width,
        n_layer=layers,
        n_head=options.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(about).to(device)


def our_parameters(theirs: Any, options: argparse.Namespace, layers: int) -> Any:
    """The same weights as our network has them."""
    state = theirs.transformer.state_dict()
    sizes = {"num_classes": options.vocabulary, "max_length": options.length}
    sizes |= {"width": options.width, "num_layers": layers, "num_heads": options.heads}
    layout = gpt2.layout(**sizes)
    read = {place.path: state[place.name].float().cpu().numpy() for place in layout}
    return traverse_util.unflatten_dict(read)


def their_run(
    student: Any, teacher: Any, optimizer: Any, tokens: Any, labels: Any, *, compiled: bool
) -> Callable[[], float]:
    """One of their steps; returns the loss."""

    def loss_of(tokens, labels):
        with torch.autocast(tokens.device.type, torch.bfloat16):
            with torch.no_grad():
                answers = teacher(tokens).logits
            logits = student(tokens).logits
        logits, answers = logits.float(), answers.float()
        soft = functional.kl_div(
            functional.log_softmax(logits, -1).flatten(0, 1),
            functional.log_softmax(answers, -1).flatten(0, 1),
            log_target=True,
            reduction="batchmean",
        )
        hard = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return ALPHA * soft + (1 - ALPHA) * hard

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def run() -> float:
        found = loss_of(tokens, labels)
        optimizer.zero_grad(set_to_none=True)
        found.backward()
        optimizer.step()
        value = found.item()
        if tokens.is_cuda:
            torch.cuda.synchronize()
        return value

    return run


def our_run(step: steps.Step, made: Any) -> tuple[Callable[[], float], float, float]:
    """(one of our steps, which returns the loss; memory in GiB; operations)."""
    state, frozen, batch = made
    state = jax.tree.map(jnp.array, state)  # each side uses its own up
    with backend.assume("cpu", None):  # without fused kernels, whose work is not to be seen
        operations = count_flops(step.update, state, frozen, batch)
    compiled = jax.jit(step.update, donate_argnums=0).lower(state, frozen, batch).compile()
    memory: Any = compiled.memory_analysis()

    def run() -> float:
        nonlocal state
        state, metrics = compiled(state, frozen, batch)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return run, needed / 2**30, operations


def sides(options: argparse.Namespace) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    """(runs by name, what is known of them)."""
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    teacher = their_network(options, options.layers, device).eval()
    sizes = {"num_layers": options.layers, "num_heads": options.heads, "width": options.width}
    half = max(1, options.layers // 2)
    step = steps.swing(
        options.batch,
        options.length,
        vocabulary=options.vocabulary,
        teacher=sizes,
        student_layers=half,
    )
    state, frozen, batch = jax.jit(step.make)()
    student = their_network(options, half, device)
    params = jax.device_put(our_parameters(student, options, half))
    frozen = {**frozen, "teacher": {"params": our_parameters(teacher, options, options.layers)}}
    frozen["teacher"] = jax.device_put(frozen["teacher"])
    state = state.replace(params=params, opt_state=steps.ADAMW.make().init(params))
    nothing = jnp.zeros_like(batch["scores"])
    plain = {**batch, "scores": nothing, "noise_scale": nothing}
    objective: Any = step.update.objective
    quiet = dataclasses.replace(objective, noisy=False)
    kd = dataclasses.replace(step, update=dataclasses.replace(step.update, objective=quiet))
    tokens, labels = (
        torch.from_numpy(np.array(batch[name])).long().to(device) for name in ("tokens", "labels")
    )
    runs, about = {}, {}
    for name, ours, given in (("kd", kd, plain), ("swing", step, batch)):
        runs[name], memory, operations = our_run(ours, (state, frozen, given))
        about[name] = {"gib": memory, "flops": operations}
    optimizer = torch.optim.AdamW(student.parameters(), 1e-4, weight_decay=0.01)
    for name, compiled in (("hf", False), ("hf.compile", True)):
        given = (student, teacher, optimizer, tokens, labels)
        runs[name] = their_run(*given, compiled=compiled)
        about[name] = {}
    return runs, about


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """First losses, medians in milliseconds, tokens a second, memory, and the share of the peak.

    Losses and memory are printed as they are found, and speeds after every round.
    """
    runs, about = sides(options)
    cuda = jax.default_backend() == "gpu" and torch.cuda.is_available()
    for name in list(runs):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            about[name]["loss"] = runs[name]()
        except Exception as error:  # whatever is wrong with a machine's compilers
            print(f"{name} is skipped ({type(error).__name__}: {error})"[:160], flush=True)
            del runs[name], about[name]
            continue
        if cuda and name.startswith("hf"):
            about[name]["gib"] = torch.cuda.max_memory_allocated() / 2**30
        gib = about[name].get("gib")
        memory = "" if gib is None else f", {gib:.2f} GiB"
        print(f"{name}: compiled, first loss {about[name]['loss']:.4f}{memory}", flush=True)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(options.rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i:
                times[name].append(time.perf_counter() - start)
        if i:
            latest = (f"{name} {1e3 * each[-1]:.1f}" for name, each in times.items())
            print(f"round {i}, ms: {', '.join(latest)}", flush=True)
    peak = peaks.peak(jax.devices()[0].device_kind)
    for name, found in about.items():
        seconds = statistics.median(times[name])
        tokens = options.batch * options.length
        found |= {"ms": 1e3 * seconds, "tokens_per_second": tokens / seconds}
        if peak and "flops" in found:
            found["share_of_peak"] = found["flops"] / seconds / peak
    return about


def show(about: dict[str, Any]):
    """The table."""
    print(f"{'':<12}{'ms':>9}{'tokens/s':>12}{'GiB':>8}{'of peak':>9}{'loss':>10}{'time / hf':>11}")
    for name, found in about.items():
        share, gib = found.get("share_of_peak"), found.get("gib")
        ratio = found["ms"] / about["hf"]["ms"] if "hf" in about else None
        print(
            f"{name:<12}{found['ms']:>9.1f}{found['tokens_per_second']:>12,.0f}"
            f"{'' if gib is None else f'{gib:.2f}':>8}{'' if share is None else f'{share:.1%}':>9}"
            f"{found['loss']:>10.4f}{'' if ratio is None else f'{ratio:.2f}':>11}",
            flush=True,
        )
    if "hf" in about and "kd" in about:
        apart = abs(about["kd"]["loss"] - about["hf"]["loss"]) / abs(about["hf"]["loss"])
        print(f"losses of kd and hf differ by {apart:.1e} of theirs", flush=True)
        if apart > 0.02:
            raise SystemExit("the two sides do not compute the same loss")


def main():
    """Times and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=50_257)
    parser.add_argument("--layers", type=int, default=12, help="of the teacher")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    print(jax.devices()[0].device_kind)
    about = measure(options)
    show(about)
    print(json.dumps(about))


if __name__ == "__main__":
    main()
