"""Triton kernels that keep on chip what plain PyTorch hands through memory from launch to launch; for CUDA only."""
