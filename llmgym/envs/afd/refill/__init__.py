"""AFDRefill: which waiting request refills which slot."""
