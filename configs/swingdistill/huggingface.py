r"""A smaller student of a language model from Hugging Face, on private text of your own.

python -m swingdistill.train --config configs/swingdistill/huggingface.py --workdir runs/student \
    --config.teacher=models/SmolLM2-135M --config.dataset=jsonl:private.jsonl
python -m distill_core.release --checkpoint runs/student --format=hf --out runs/released

The teacher is a directory with config.json, tokenizer.json and `.safetensors` files: Llama,
SmolLM2, Mistral, Qwen2, Qwen3, Gemma 3 (text) or GPT-2. The student has the teacher's architecture
and tokenizer, but fewer layers. Each line of the text is
{"text": …, "spans": [[start, end, score, kind], …]}; what the spans mark and the recognisers
(`rules`) find is private. With a reference, a model of public text with the same tokenizer,
`--config.reference=DIR --config.scorers="('spans','rules','divergence')"` also hides what the
teacher knows by heart and nobody marked.

Meant for an accelerator; `:smoke` shrinks it to three steps of short rows.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "jsonl:private.jsonl"
    config.length = 1024
    config.teacher = "models/SmolLM2-135M"
    config.frozen_dtype = "bfloat16"

    config.model = "teacher"
    config.model_kwargs = config_dict.ConfigDict({"num_layers": 8})
    config.compute_dtype = "bfloat16"
    config.remat = "block"

    config.scorers = ("spans", "rules")
    config.t_max = 16.0
    config.noise_scale = 1.0
    config.alpha = 0.7

    config.optimizer = "adamw"
    config.learning_rate = 3e-4
    config.weight_decay = 0.1
    config.clip_norm = 1.0
    config.schedule = "cosine"
    config.warmup_steps = 500
    config.batch_size = 16
    config.num_steps = 20_000
    config.use = "best"
    config.seed = 0
    if arg == "smoke":
        config.length = 48
        config.model_kwargs.num_layers = 1
        config.batch_size = 8
        config.warmup_steps = 1
        config.num_steps = 3
    return config
