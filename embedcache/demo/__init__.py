"""The demo: a small data set of drawn birds, and two small backbones trained on other birds.

``species`` → ``genera`` (which birds there are), ``drawing`` (their pictures, from ``body``, ``scenery`` and
``pen``), ``captions`` (what is said of them), ``birds`` (all of it on disk, as CUB-200-2011 was published).
"""
