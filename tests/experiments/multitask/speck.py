"""A preset so small that an experiment of it takes seconds."""

SIZE = [32, 32]
SPECK = {
    "network": {"depth": 18, "width": 4},
    "branch": {
        "features": 4,
        "size": 32,
        "patch": 4,
        "ratio": 0.8,
        "width": 8,
        "depth": 1,
        "decoder_depth": 1,
        "heads": 2,
    },
    "recipe": {"iterations": 3, "batch": 4, "lr": 1e-3, "every": 2},
    "source": {"first": 0, "houses": 2, "frames": 4, "size": SIZE},
    "validation": {"first": 50, "houses": 1, "frames": 4, "size": SIZE, "style": "minimal"},
    "target": {"first": 90, "houses": 1, "frames": 5, "size": SIZE, "style": "other"},
}
