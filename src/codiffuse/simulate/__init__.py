"""Random degradations: motion and Gaussian blur kernels, turbulence."""
