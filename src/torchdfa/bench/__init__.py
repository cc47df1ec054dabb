"""``torchdfa bench``: what feedback costs on this machine, measured beside back-propagation and peers.

One module a bench, each with ``cases(sizes)``; ``harness`` times them in turns, ``table`` draws what the results say.
"""
