"""Inside a training job: trainers, checkpoints, sweeps and evaluation gates."""

if __name__ == "train":
    raise ImportError("'train' is a root folder of Moorage: import it as 'moorage.train'")
