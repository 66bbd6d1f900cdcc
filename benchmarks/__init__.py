"""Speed and memory beside named peers, every figure a ratio within one run."""
