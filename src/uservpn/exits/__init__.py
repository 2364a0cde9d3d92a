"""The exit's policy: which targets may be dialled."""
