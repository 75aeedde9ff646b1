"""A GPU, when there is one: is it right, how fast is it; without one, everything lowers: ``python -m experiments.gpu``.

__main__.py   the command line: with a GPU, without      lowering.py   the same programs, lowered for CUDA anywhere
contract.py   the tests' cases beside float64 loops      deadline.py   the time limit
speed.py      shapes, cells, dtypes, who takes part      report.py     what a run writes, also into the page
"""
