"""The search on a torch device: what is exact about it, how limits are set, and which way of selecting is taken.

`engine` is what the rest of the package asks; `sweep` scores each pair once and keeps what exceeds a limit; `plain` takes the
best of a product by `topk`; `choice` measures both. `torch_steps` and `triton_steps` do the same work, tensor by tensor.
"""
