"""The products and sums of the heads' losses on a GPU, as Triton kernels.

Importing this package does not import triton: ``dispatch`` decides whether kernels serve, and only then are
the modules with kernels imported. ``MHE_KERNELS=0`` turns them off. With ``TRITON_INTERPRET=1`` they serve
tensors on the CPU, which is how they are tested without a GPU.
"""
