"""The closed loop: what a model puts out becomes what it reads.

generate, beam_search        free running: samples, and the likeliest sequences
log_likelihood, perplexity   teacher forcing: what a model thinks of given sequences
scheduled_sampling           between the two, for training
greedy, temperature, …       how a sample is drawn, for ``generate(sample=…)``
ctc_loss, ctc_decode         labels of a sequence without an alignment
"""

from jaxrnn.decoding.beams import Beams, beam_search, wu_2016
from jaxrnn.decoding.ctc import CTCDecoded, ctc_decode, ctc_loss
from jaxrnn.decoding.generating import Generated, generate
from jaxrnn.decoding.likelihood import log_likelihood, perplexity
from jaxrnn.decoding.samplers import Sampler, greedy, temperature, top_k, top_p
from jaxrnn.decoding.scheduled import scheduled_sampling

__all__ = [
    "generate",
    "Generated",
    "Sampler",
    "greedy",
    "temperature",
    "top_k",
    "top_p",
    "beam_search",
    "Beams",
    "wu_2016",
    "log_likelihood",
    "perplexity",
    "scheduled_sampling",
    "ctc_loss",
    "ctc_decode",
    "CTCDecoded",
]
