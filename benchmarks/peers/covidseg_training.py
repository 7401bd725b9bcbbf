"""covidseg as a contestant of training_speed.py: its own sampler and its own train_step.

python covidseg_training.py FOLDER DEVICE PRECISION COMPILATION
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import SupportsFloat

from turns import claim_stdout, serve_turns

from covidseg_train.config import config_from_dict
from covidseg_train.device import choose_device
from covidseg_train.distributed import Ranks
from covidseg_train.fit import load_training_sets, start_training, train_step
from covidseg_train.patches import PatchSampler
from covidseg_train.unet import count_parameters


def main() -> None:
    """Build the training as `covidseg train` does and take turns."""
    answers = claim_stdout()
    folder, device_name, precision, compilation = sys.argv[1:]
    config = config_from_dict(json.loads((Path(folder) / "experiment.json").read_text(encoding="utf-8")))
    run = replace(config.run, precision=precision, compilation=compilation)  # type: ignore[arg-type]
    config, device = replace(config, run=run), choose_device(device_name)
    with tempfile.TemporaryDirectory() as run_folder:
        training = start_training(config, device, Path(run_folder), Ranks())
    sampler = PatchSampler(load_training_sets(config.data, config), config, device)
    training.network.train()

    def take_steps(count: int) -> list[SupportsFloat]:
        return [train_step(training, sampler.batch(training.progress.step)) for _ in range(count)]

    parameters = count_parameters(training.network)
    description = {"parameters": parameters, "precision": training.precision, "compilation": compilation, "workers": 0}
    serve_turns(answers, description, take_steps, device)


if __name__ == "__main__":
    main()
