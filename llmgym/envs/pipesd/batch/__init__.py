"""PipeSDBatch: when to upload the tokens of a window that is being drafted."""
