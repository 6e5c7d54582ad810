"""AFDRatio: how many attention instances feed one FFN instance."""
