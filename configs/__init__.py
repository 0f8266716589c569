"""What a user writes: schemas of job metadata, teams and pools, with their defaults and examples."""

if __name__ == "configs":
    raise ImportError("'configs' is a root folder of Moorage: import it as 'moorage.configs'")
