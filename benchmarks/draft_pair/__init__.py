"""What `benchmarks/draft_target.py` trains and on what: the corpus and the models."""
