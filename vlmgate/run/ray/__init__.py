"""Read a folder with the machines of a Ray cluster, and journal on one.

`worker` opens files and asks the model, in a process of its own on any machine; `crew` hands files out and takes what
comes back, whatever becomes of the workers; `connection` starts and leaves Ray. What is journalled, scored and decided
stays where the run was started.
"""
