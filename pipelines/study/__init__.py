"""Does text do anything beyond labels? Objectives, graphs and temperatures compared with equal images seen.

`python -m pipelines.study`. `plan` names the runs, `data` and `graphs` make what they need, `execute` trains and evaluates.
"""
