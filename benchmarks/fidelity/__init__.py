"""How far the serving model is from engines that others wrote: `python benchmarks/fidelity.py` is the entry.

- `cases`: the traffic that is measured with vLLM;
- `runs`: measured runs as arrays, and the figures compared;
- `kernels`: step costs from published kernel tables;
- `serving`: a run replayed by the compiled engine of llmgym;
- `steps`: host times from the log of an engine's steps; `engine_steps` writes such a log inside vLLM;
- `orders`: what an order or a cached prefix is worth;
- `aiconfigurator`, `silicon`: closed forms against many measured servers;
- `validations`, `report`: the comparisons, as tables and a picture.
"""
