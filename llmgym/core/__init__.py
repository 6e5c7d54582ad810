"""How a simulation becomes an `Env` and a `VectorEnv`; knows gymnasium, knows no LLM."""
