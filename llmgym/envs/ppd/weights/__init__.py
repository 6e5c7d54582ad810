"""PPDWeights: the weight of time per token in the routing rule, period by period."""
