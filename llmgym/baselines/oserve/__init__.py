"""The planner of OServe, its search and its forecasts, and what it is compared with."""
