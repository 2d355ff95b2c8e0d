"""The paper's grid on Tiny-ImageNet (64×64, 200 classes): one teacher, students of all kinds.

for teacher in resnet18 resnet50 resnext29; do
  python -m nasty.experiment --config configs/nasty/tiny_imagenet.py:$teacher \
      --workdir runs/tiny_$teacher --config.dataset=folder:DIRECTORY/tiny-imagenet-200
done

DIRECTORY holds the unpacked archive as it is distributed; its `val/` is read through
`val_annotations.txt` and is the test split. Students are ShuffleNetV2, MobileNetV2, ResNet-18 and
the teacher's own architecture. It is meant for an accelerator. ω = 0.01 and τ = 20 are those of the
reference code. We have not run it, so there is no number of ours to expect.
"""

from ml_collections import config_dict

EPOCH = 100_000 // 128
TEACHERS = ("resnet18", "resnet50", "resnext29")


def get_config(arg=""):
    if arg not in ("", *TEACHERS, "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: {', '.join(TEACHERS)}, smoke")
    config = config_dict.ConfigDict()
    config.dataset = "folder:tiny-imagenet-200"
    config.seeds = (1, 2, 3)
    config.rotation = 20.0
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

    config.omega = 0.01
    config.temperature = 20.0
    config.alpha = 0.9

    config.compute_dtype = "bfloat16"
    config.data_on_device = True
    config.steps_per_dispatch = 11  # 781 steps of an epoch are 71 dispatches
    config.log_every = EPOCH
    config.eval_every = config.save_every = 5 * EPOCH
    if arg == "smoke":
        config.compute_dtype, config.data_on_device, config.steps_per_dispatch = "float32", False, 1
        config.seeds = (1,)
        config.num_steps = config.student.num_steps = 2
        del config.students
    return config.lock()
