"""The subcommands of ``python -m jaxrnn``, one a module; ``doctor`` is a package of its own. And what they share."""
