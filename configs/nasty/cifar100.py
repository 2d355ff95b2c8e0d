"""The paper's grid on CIFAR-100 with the paper's recipe: one teacher, students of all kinds.

for teacher in resnet18 resnet50 resnext29; do
  python -m nasty.experiment --config configs/nasty/cifar100.py:$teacher \
      --workdir runs/cifar100_$teacher --config.data_dir=DIRECTORY
done

Each command trains students of the architectures ShuffleNetV2, MobileNetV2, ResNet-18 and the
teacher's own: alone, from the normal and from the nasty teacher. It is meant for an accelerator:
bfloat16, data on the device, 30 steps per dispatch. If a command was stopped, repeat it: it
continues. ω = 0.005 and τ = 20 are those of the reference code. We have not run it, so there is no
number of ours to expect.
"""

from ml_collections import config_dict

EPOCH = 50_000 // 128
TEACHERS = ("resnet18", "resnet50", "resnext29")


def get_config(arg=""):
    if arg not in ("", *TEACHERS, "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: {', '.join(TEACHERS)}, smoke")
    config = config_dict.ConfigDict()
    config.dataset = "tfds:cifar100"
    config.data_dir = config_dict.placeholder(str)
    config.seeds = (1, 2, 3)
    config.crop_padding = 4
    config.flip = True
    recipe = {
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "step",
        "drop_steps": (60 * EPOCH, 120 * EPOCH, 160 * EPOCH),
        "drop_factor": 0.2,
        "batch_size": 128,
        "num_steps": 200 * EPOCH,
    }
    config.update(recipe)
    config.student = config_dict.ConfigDict(recipe)
    config.model = arg if arg in TEACHERS else "resnet18"
    config.model_kwargs = config_dict.ConfigDict()
    config.student.model = "shufflenetv2"
    config.students = {name: {"model": name} for name in ("mobilenetv2", "resnet18")}

    config.omega = 0.005
    config.temperature = 20.0
    config.alpha = 0.9

    config.compute_dtype = "bfloat16"
    config.data_on_device = True
    config.steps_per_dispatch = 30
    config.log_every = EPOCH
    config.eval_every = config.save_every = 5 * EPOCH
    if arg == "smoke":
        config.compute_dtype, config.data_on_device, config.steps_per_dispatch = "float32", False, 1
        config.seeds = (1,)
        config.num_steps = config.student.num_steps = 2
        del config.students
    return config.lock()
