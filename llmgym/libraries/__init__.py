"""What other libraries of reinforcement learning take: adapters where gymnasium's own interface is not enough.

    llmgym.libraries.masked        ids whose observations hold the mask, for RLlib
    llmgym.libraries.tianshou      native lanes as a vector environment of Tianshou
    llmgym.libraries.pettingzoo    the clients of PipeSDNav as agents

The adapter of stable-baselines3 is `llmgym.policies.SB3VecEnv`. Each module imports its library when it is imported; none is
imported here.
"""
