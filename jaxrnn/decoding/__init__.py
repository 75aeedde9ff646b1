"""The closed loop: what a model puts out becomes what it reads.

Sampler, greedy, temperature, top_k, top_p  how a sample is drawn, for ``jr.generate(sample=…)``
Generated                                   what ``jr.generate`` returns: free running
Beams, wu_2016                              what ``jr.beam_search`` returns, and a length penalty for it
perplexity                                  beside ``jr.log_likelihood``: teacher forcing
scheduled_sampling                          between teacher forcing and free running, for training
ctc_loss, ctc_decode, CTCDecoded            labels of a sequence without an alignment
"""

from jaxrnn.decoding.beams import Beams, wu_2016
from jaxrnn.decoding.ctc import CTCDecoded, ctc_decode, ctc_loss
from jaxrnn.decoding.generating import Generated
from jaxrnn.decoding.likelihood import perplexity
from jaxrnn.decoding.samplers import Sampler, greedy, temperature, top_k, top_p
from jaxrnn.decoding.scheduled import scheduled_sampling

__all__ = [
    "Sampler",
    "greedy",
    "temperature",
    "top_k",
    "top_p",
    "Generated",
    "Beams",
    "wu_2016",
    "perplexity",
    "scheduled_sampling",
    "ctc_loss",
    "ctc_decode",
    "CTCDecoded",
]
