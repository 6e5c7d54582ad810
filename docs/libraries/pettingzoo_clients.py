"""PettingZoo: the four clients of PipeSDNav as agents, each with the same simple rule."""

from llmgym.libraries.pettingzoo import PipeSDClients


def ask_after(tokens):
    """Draft so many tokens, then ask for the verdict; only the client whose turn it is may."""

    def act(env, agent, seen):
        if not seen["action_mask"][2]:
            return 0
        layout = env.env.layout
        drafted = seen["observation"][layout["block"]][0] * 32
        return 2 if drafted >= tokens or not seen["action_mask"][0] else 0

    return act


def play(env, act, seed=0):
    observations, _ = env.reset(seed=seed)
    total = 0.0
    while env.agents:
        actions = {agent: act(env, agent, observations[agent]) for agent in env.agents}
        observations, rewards, _, _, infos = env.step(actions)
        total += next(iter(rewards.values()))  # one reward for all of them
    return total, infos


if __name__ == "__main__":
    env = PipeSDClients(scenario="shared", tokens=100)
    for tokens in (1, 4, 8):
        total, _ = play(env, ask_after(tokens))
        print(f"ask after {tokens} tokens: return {total:.1f}")
