"""The demo: a small data set of drawn birds, and two small backbones trained on other birds."""
