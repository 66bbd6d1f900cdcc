"""Where forward passes run. ``local`` is one process for one device."""
