"""What the experiments share: how a config file becomes a run, and a run a table.

command.py   python -m experiments        study.py        what an experiment that trains consists of, and its run
options.py   its options                  training.py     the members of one model, trained in one program
config.py    TOML files and --set         sweep.py        grids of settings and seeds, the best first
own.py       experiments in folders of their own; mytask/ is what ``new`` copies
models.py    recurrences by name, and     predict.py      a trained model, asked
             what reads their state       report.py       results: tables, figures
terminal.py  what the terminal shows      directories.py  where a run is on disk
strings.py   symbols up to an end         translator.py   from strings to strings, with attention
"""
