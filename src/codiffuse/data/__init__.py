"""Pictures and kernels from files, and the measurements made of them."""
