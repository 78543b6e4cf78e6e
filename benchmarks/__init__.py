"""Benchmarks: `python -m tensoryard.benchmarks` measures us, our peers and the floors at the same work, in turns.

    works       what is asked of everybody, and how an answer is checked
    contenders/ one small adapter per contender, behind one protocol (`base.py`); servers are processes of their own
    host, house a process that runs contenders and times them, and the other end of its pipe
    rounds      who is measured when: shuffled within each round, so that noise meets everybody
    figures     medians, percentiles, ratios per round
    goals       what is to be shown, and whether it was
    report, plot, results   text and Markdown, SVG, JSON

Beside them stand benchmarks of one part each, with a command of their own: `router_scale`, `hops`, `idle`, `detection`,
`allocations`, which the first one runs too, and `memory`, `import_time`, `token_step`,
`sampling`, `adapters`. Nothing here is installed.
"""
