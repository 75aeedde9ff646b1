"""A GPU, when there is one: is it right, how fast is it; without one, everything lowers: ``python -m experiments.gpu``.

__main__.py   the command line, with a GPU and without    speed.py      shapes, cells, dtypes; entries that mind the limit
contract.py   the tests' cases beside float64 loops       lowering.py   the same programs, lowered for CUDA on any machine
deadline.py   the time limit                              report.py     what a run writes, also into the page
"""
