"""Unmask: which masked positions a masked-diffusion language model reveals at each denoiser call."""
