"""Policies and rules of the gym in systems that serve: as the scheduler of vLLM, and in a router.

- `vllm`: `GymScheduler`, for `vllm serve --scheduler-cls llmgym.deploy.vllm.GymScheduler`;
- `router`: the routing rules of PPDRouting behind `route_request(endpoints, engine_stats, request_stats, request)`;
- `export`: writes a policy or a rule to a file that both can read with numpy alone (`llmgym export-policy`).

What runs inside an engine or a router imports numpy and nothing else of this package but its errors.
"""
