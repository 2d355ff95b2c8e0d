"""Swing distillation on WikiText-2: all arms, three seeds of secrets, a sweep over the noise.

python -m swingdistill.experiment --config configs/swingdistill/wikitext.py \
    --workdir runs/wikitext --config.dataset=text:DIRECTORY

DIRECTORY holds wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens. To fit two CPU cores, the
vocabulary has 2,000 words, and teacher and reference have 3,000 lines each; the 37 runs take about
70 minutes. Expect 19 and 20 bits of exposure at 10 and 100 repetitions for plain distillation and
1.4 for Swing, at a perplexity of 38.2 against 38.3. These numbers do not include the private
students, dp_sgd: three more runs of a few minutes each.

`:sweep` has neither ablations nor decoys nor private students: what decides whether exposure rises
as the noise falls, on three seeds. Expect a slope of 0.4 bits per decade of noise for Swing, of 4.2
at a constant temperature.
`:byte_pairs` is the comparison without ablations, with a byte-pair vocabulary that merges digits
and one seed: numbers are then ranked as whole lines among 200,000 sampled ones, with 95% bounds.
Expect 14.7 and 17.6 bits for plain distillation (the most that can be seen), 1.4 and 1.9 for Swing.
`:names` is the same with names as secrets, drawn from a list of yours with one name per line:

python -m swingdistill.experiment --config configs/swingdistill/wikitext.py:names \
    --workdir runs/names --config.dataset=text:DIRECTORY --config.canary_candidates=names.txt
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "sweep", "byte_pairs", "names", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: sweep, byte_pairs, names, smoke")
    config = config_dict.ConfigDict()
    config.dataset = config_dict.placeholder(str)
    config.task = "language"
    config.num_train = 3000
    config.length = 64
    config.vocab_size = 2000
    config.canaries_per_level = 24
    config.canary_levels = (1, 10, 100)
    config.num_decoys = 1000
    config.seeds = (1, 2, 3)
    config.sweep = (0.1, 0.5, 2.0, 10.0)

    config.model = "transformer"
    config.model_kwargs = config_dict.ConfigDict({"width": 64, "num_layers": 2, "num_heads": 4})
    config.optimizer = "adam"
    config.learning_rate = 5e-3
    config.schedule = "onecycle"
    config.batch_size = 32
    config.num_steps = 2000

    config.student = config_dict.ConfigDict()
    config.student.model = "transformer"
    config.student.model_kwargs = config_dict.ConfigDict(
        {"width": 64, "num_layers": 1, "num_heads": 4}
    )
    config.student.optimizer = "adam"
    config.student.learning_rate = 5e-3
    config.student.schedule = "onecycle"
    config.student.batch_size = 32
    config.student.num_steps = 1500

    # The arm dp_sgd: ε for a line of the text.
    config.dp = config_dict.ConfigDict({"epsilon": 8.0, "delta": 1e-5, "norm": 1.0})
    config.dp_batch_size = 256
    config.dp_num_steps = 150
    config.dp_learning_rate = 1e-2

    config.alpha = 0.7
    config.scorers = ("rules", "divergence")
    config.t_max = 16.0
    config.noise_scale = 1.0
    config.noise_seed = 0  # repeats the published table; without it noise is secret and new

    config.log_every = 500
    if arg in ("byte_pairs", "names"):
        config.tokenizer = "byte_pairs_merged"
        config.num_samples = 200_000
        config.seeds = (1,)
        config.sweep = ()
    if arg == "sweep":
        config.decoys = False
    if arg in ("sweep", "byte_pairs", "names"):
        config.ablations = False
        del config.dp, config.dp_batch_size, config.dp_num_steps, config.dp_learning_rate
    if arg == "names":
        config.canary_format = "my name is {}"
        config.canary_candidates = config_dict.placeholder(str)
    if arg == "smoke":
        config.num_steps = config.student.num_steps = config.dp_num_steps = 4
    return config.lock()
