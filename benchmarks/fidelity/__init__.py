"""How far the serving model is from engines that others wrote: `python benchmarks/fidelity.py` is the entry.

- `cases`: the traffic that is measured with vLLM;
- `runs`: measured runs as arrays, and the figures compared;
- `kernels`: step costs from published kernel tables;
- `serving`: a run replayed by the compiled engine of llmgym;
- `prototype`: the same in plain Python, with mechanics of vLLM V1 that can be switched one by one;
- `aiconfigurator`, `silicon`: closed forms against many measured servers;
- `validations`, `report`: the comparisons, as tables and a picture.
"""
