"""The subcommands of ``python -m jaxrnn`` that read and write files of weights, one a module."""
